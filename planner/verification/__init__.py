"""Verifies a plan by generation: runs the plain model and the emitted plan in child processes."""
