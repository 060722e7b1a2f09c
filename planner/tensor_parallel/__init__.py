"""What one rank of a model cut over GPUs holds and computes, and what the sums between ranks cost. Pure."""
