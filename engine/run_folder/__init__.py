# Machinery: keep, and skip at first.
"""The folder of a run: its command line, lock, checkpoints and figures."""
