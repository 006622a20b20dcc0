# Machinery: keep, and skip at first.
"""What a problem has to provide, and what it may use. A file that defines a problem imports these names from here."""

from engine.interface.base_config import STRICT, Config, DataConfig, LogConfig, TrainConfig
from engine.interface.base_problem import (
    Check,
    Columns,
    FileColumns,
    Problem,
    Scale,
    Shape,
    Splits,
    numbers_in,
    regression_metrics,
)
from engine.interface.linear_baselines import least_squares
from engine.options.fields import option

__all__ = [
    "STRICT",
    "Check",
    "Columns",
    "Config",
    "DataConfig",
    "FileColumns",
    "LogConfig",
    "Problem",
    "Scale",
    "Shape",
    "Splits",
    "TrainConfig",
    "least_squares",
    "numbers_in",
    "option",
    "regression_metrics",
]
