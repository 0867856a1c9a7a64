"""Every error that a user can cause, in one small tree.

    FlowchunkError
    ├── ConfigurationError     an option, override or argument that cannot be used
    ├── DatasetError           a data set that is missing, damaged or inconsistent
    ├── SpecMismatchError      data, policy and environment that disagree about observations or actions
    ├── CheckpointError        a checkpoint that cannot be read or written
    ├── SimulationError        an environment that cannot be created, stepped or rendered
    ├── TrainingError          a training run that cannot continue
    └── RobotError             a robot that does not answer, or that had to be stopped

A message states what was expected, what was found and what to do. The command line prints only the message; ``--debug``
adds the traceback.
"""


class FlowchunkError(Exception):
    """Base class of every error that the package raises for a user's mistake."""


class ConfigurationError(FlowchunkError, ValueError):
    """An option, an override or an argument that cannot be used."""


class DatasetError(FlowchunkError):
    """A data set that is missing, damaged or inconsistent with its own description."""


class SpecMismatchError(FlowchunkError):
    """Data, policy or environment disagree about observations or actions."""


class CheckpointError(FlowchunkError):
    """A checkpoint that cannot be read or written."""


class SimulationError(FlowchunkError):
    """An environment that cannot be created, stepped or rendered."""


class TrainingError(FlowchunkError):
    """A training run that cannot continue because its numbers are no longer finite."""


class RobotError(FlowchunkError):
    """A robot does not answer, answers what cannot be used, or had to be stopped."""
