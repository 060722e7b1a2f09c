"""The arithmetic of groups on blocks of weights: one module per formula, all with the same functions."""
