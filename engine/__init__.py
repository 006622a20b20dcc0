# Machinery: keep, and skip at first.
"""Code that all problems share: options, data sets, checkpoints, processes, files. Skip it on a first reading."""
