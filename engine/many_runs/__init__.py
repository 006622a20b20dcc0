# Machinery: keep, and skip at first.
"""Many runs: sweeps, searches, lists and comparisons. A first reader may skip it."""
