"""Tensor parallelism: what one rank holds and computes, and what the collectives between ranks cost. Pure."""
