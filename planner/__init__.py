"""Where a model's weights and KV cache live on a machine, and what that costs."""
