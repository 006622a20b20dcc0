# Machinery: keep, and skip at first.
"""What a problem has to provide, and what it may use. A file that defines a problem imports these names from here."""

from engine.interface.base_config import STRICT, Config, DataConfig, LogConfig, TrainConfig
from engine.interface.base_problem import Check, Columns, Problem, Scale, Shape, Splits, regression_metrics
from engine.interface.linear_baselines import least_squares
from engine.options.fields import option

__all__ = [
    "STRICT",
    "Check",
    "Columns",
    "Config",
    "DataConfig",
    "LogConfig",
    "Problem",
    "Scale",
    "Shape",
    "Splits",
    "TrainConfig",
    "least_squares",
    "option",
    "regression_metrics",
]
