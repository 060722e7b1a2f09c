"""Models that run, loaded from shards: one module per runtime, each with one function.

Importing this package imports no framework; importing one of its modules imports the runtime's.
"""
