"""Tests of engine/, main.py, evaluate.py, trainer.py and logger.py with the toy problem."""
