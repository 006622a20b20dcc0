"""Studies, each of which is one command that writes one JSON file and one figure."""

import engine.interface.generic_figures  # noqa: F401 - before matplotlib, which it imports also if MPLBACKEND names an unknown backend
