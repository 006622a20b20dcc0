# Machinery: keep, and skip at first.
"""Data sets: splits, cache, files, examples that occur in training."""
