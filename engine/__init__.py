"""The machinery that a first reader may skip: options, data sets, checkpoints, processes, files. Knows no problem."""
