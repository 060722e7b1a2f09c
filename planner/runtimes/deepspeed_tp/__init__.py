"""DeepSpeed's tensor parallelism: the Linears of every block are sharded over GPUs.

All ranks work on the same sequences.
"""
