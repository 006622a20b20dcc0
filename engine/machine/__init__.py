# Machinery: keep, and skip at first.
"""The machine: terminal, errors, atomic files, signals, hardware, this repository."""
