"""DeepSpeed ZeRO-Inference: weights partitioned over the ranks, in host memory, on NVMe or on the GPUs."""
