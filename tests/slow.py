"""The toy problem with a slow generator, which is called for blocks of 20 examples. Also a program:

python -m tests.slow --preset debug

Each call takes as many seconds as the environment variable SECONDS says, and adds a line to the file calls.txt.
"""

import os
import time
from pathlib import Path

from numpy.random import SeedSequence

from engine.interface import Columns
from main import main
from tests.toy import ToyConfig, ToyProblem


class SlowProblem(ToyProblem):
    """Predict the squared length of a point, with a sign."""

    name = "slow"
    block_size = 20

    def generate(self, config: ToyConfig, n: int, seed: SeedSequence) -> Columns:
        if n > 1:  # not to find shapes, or to compare two calls
            with Path("calls.txt").open("a", encoding="utf-8") as file:
                file.write(f"{n} {seed.spawn_key}\n")
        time.sleep(float(os.environ.get("SECONDS", "0")))
        if Path("fail.txt").exists() and n > 1:
            raise ZeroDivisionError("no such point")
        return super().generate(config, n, seed)


PROBLEM = SlowProblem()

if __name__ == "__main__":
    main(PROBLEM)
