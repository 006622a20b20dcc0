"""Other problems that use the same engine, one file each. Copy the one that is closest to yours."""
