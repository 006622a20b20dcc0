"""Studies, each of which is one command that writes one JSON file and one figure."""
