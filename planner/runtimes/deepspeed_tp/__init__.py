"""DeepSpeed's tensor parallelism: every block's Linears cut over GPUs that work on the same sequences."""
