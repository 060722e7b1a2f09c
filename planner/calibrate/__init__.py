"""Refits efficiency terms of a hardware profile to benchmark rows."""
