"""One module per command. `cli/registry.py` says which."""
