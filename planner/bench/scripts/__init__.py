"""The `generate.py` of each baseline: what people run without a plan, in the frame that plans run in."""
