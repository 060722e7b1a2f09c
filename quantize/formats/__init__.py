"""One module per format of quantized checkpoints."""
