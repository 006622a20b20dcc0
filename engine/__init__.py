"""Code that all problems share: options, data sets, checkpoints, processes, files. Skip it on a first reading."""
