"""Errors of quantization: per tensor, and in the model's predictions."""
