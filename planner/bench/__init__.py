"""Runs plans and baselines at several batch sizes, and sets what was predicted beside what was measured."""
