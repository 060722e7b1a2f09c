"""Proof by generation: the plain model and the emitted plan, each in a process of its own."""
