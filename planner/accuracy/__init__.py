"""The cost model held against what others measured and published, row by row."""
