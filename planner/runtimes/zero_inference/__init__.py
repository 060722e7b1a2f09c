"""DeepSpeed ZeRO-Inference: weights cut over the ranks, kept in host memory, on NVMe or on the GPUs."""
