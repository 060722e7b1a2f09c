"""Files that serve a plan with DeepSpeed-MII or DJL Serving, and commands that start it on several hosts."""
