# Machinery: keep, and skip at first.
"""Networks in use: scaled tensors, predictions, metrics, several processes."""
