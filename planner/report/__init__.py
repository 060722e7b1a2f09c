"""Explains and draws a plan: memory of each device, timeline of one step, and other batch sizes."""
