"""Many runs: sweeps, searches, lists and comparisons. A first reader may skip it."""
