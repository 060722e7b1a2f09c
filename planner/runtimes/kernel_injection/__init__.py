"""DeepSpeed's inference kernels: every block is replaced by one of DeepSpeed's, sharded over the GPUs."""
