"""The measurements of a probe: one module for each part of the machine, each run in its own process."""
