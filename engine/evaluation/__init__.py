# Machinery: keep, and skip at first.
"""Evaluations of saved runs and sweeps on new data."""
