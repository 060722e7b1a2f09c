"""Finds the best placement of a priced model: candidates, an integer program, the choice of a plan."""
