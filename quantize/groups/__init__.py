"""The arithmetic of groups: one module per formula, all of one shape, on blocks of weights in memory."""
