"""DeepSpeed's inference kernels: every block replaced by one of DeepSpeed's own, cut over the GPUs."""
