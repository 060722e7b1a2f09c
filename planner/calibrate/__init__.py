"""Refits a few efficiency terms of a profile to benchmark rows."""
