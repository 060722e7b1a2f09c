"""How tensors are encoded as integers and scales."""
