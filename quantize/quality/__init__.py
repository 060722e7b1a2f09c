"""What quantization costs: per tensor, and in what the model predicts."""
