# Machinery: keep, and skip at first.
"""Random seeds."""

import random

import numpy as np


def derive_seed(*key: int) -> int:
    """Derive a seed for torch from integers. Seeds are independent, unless the keys only differ by zeros at the end."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (initial weights, dropout), NumPy and Python (for code that you add).

    All other code in this project uses separate generators.
    """
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is meant
    random.seed(seed)
