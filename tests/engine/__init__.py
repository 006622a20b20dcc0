"""Tests of the machinery, on the toy problem."""
