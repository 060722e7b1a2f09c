"""What one assignment takes: bytes on every device in each phase, and seconds.

The search optimises exactly these sums; `planner predict` prices any map with them.
"""
