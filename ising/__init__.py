# Experiment: yours, to replace.
"""The physics: lattice, samplers, exact results, statistics. It does not depend on networks, configs or files."""
