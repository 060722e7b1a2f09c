"""What a checkpoint contains and how its tensors are named, typed and stored."""
