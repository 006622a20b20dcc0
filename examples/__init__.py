"""Other problems on the same machinery, one file each. Copy the one that is closest to yours."""
