"""Benchmarks plans and baselines at several batch sizes, and compares measurements with predictions."""
