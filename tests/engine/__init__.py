"""Tests of engine/, main.py, evaluate.py, runs.py, trainer.py and logger.py with the toy problem."""
