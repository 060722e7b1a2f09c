"""The compiled inner loops: one module per way to find scales, and the code that all of them share.

Weights come as arrays of raw bits, one dtype of integers for each dtype of floats (`quantize.floats`).
Arithmetic is float32, as torch's is on a CPU, rounded to the weights' dtype only where `rounded` says so, or
whole numbers. Floats are neither reassociated nor fused: results are the same bit for bit on every machine.

A loop finds a group's scale and makes its codes before it goes to the next, so weights come from memory once,
and no Python runs between groups: with several threads the interpreter's lock would limit the rate.

Why numba: plain torch runs one operation after another over the whole tensor, so memory bounds it at a tenth
of these loops' rate (tests/benchmarks/quantizing.py); numpy block by block reaches a third. torch.compile is
as fast for float32, slower for float16, and needs a C++ compiler and half a minute on the user's machine.
These loops are single-threaded and release the GIL: callers run one per core. The code is cached beside them.

Arguments, unless a loop says otherwise: `bits` raw weights [groups, group]; `codes` integers of that shape;
`scales` float32 [groups]; `low` and `high` float32, the least and the greatest code; `like` raw bits [1] of
any value, whose dtype says what is rounded to. All are C-contiguous. Loops that make scales return the number
of the first group that has none, at which they stop, or -1.
"""
