"""The `generate.py` of each baseline, with the same interface as the script of a plan."""
