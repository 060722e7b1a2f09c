"""Compares the cost model with published measurements and with benchmark rows, row by row."""
