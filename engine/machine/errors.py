# Machinery: keep, and skip at first.
"""Errors that end a run with one line on stderr. Each class sets the exit code of the program.

The exit codes are: 0 success, 1 a bug, 2 a bad request, 3 an unusable file, 4 training diverged, 5 a disk error
(OSError), 129, 130 and 143 a signal (signals.py).
"""


class RunError(Exception):
    """An error that the program reports in one line."""

    exit_code = 1


class ProblemError(RunError):
    """A method of the problem returned something that cannot be used. The message names the method."""


class BadRequestError(RunError):
    """The request is invalid, or cannot be met on this machine."""

    exit_code = 2


class BusyError(BadRequestError):
    """Another process uses the folder of the run."""


class UnusableFileError(RunError):
    """A file is damaged, or does not contain what was expected."""

    exit_code = 3


class PrunedError(RunError):
    """A run of a search was stopped early, because other runs were better at the same epoch."""


class DivergedError(RunError):
    """A training or validation loss is infinite or not a number."""

    exit_code = 4
