"""The physics: lattice, sampler, exact results. NumPy only; knows nothing of networks, configs or files."""
