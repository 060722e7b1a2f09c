"""A plan behind a server: what DeepSpeed-MII and DJL Serving need, and how several hosts are started."""
