"""Every error a user can cause, in one small tree.

    FlowchunkError
    ├── ConfigurationError     an option, override or argument that cannot be used
    ├── DatasetError           a data set that is missing, damaged or not what it says
    ├── SpecMismatchError      two parts that disagree about observations or actions
    ├── CheckpointError        a checkpoint that cannot be read or written
    ├── SimulationError        an environment that cannot be made, stepped or drawn
    └── TrainingError          a training that cannot go on

A message says what was expected, what was got and what to do. The command line prints it alone; ``--debug`` adds the
traceback.
"""


class FlowchunkError(Exception):
    """Base of every error that the package raises for a user's mistake."""


class ConfigurationError(FlowchunkError, ValueError):
    """An option, an override or an argument that cannot be used."""


class DatasetError(FlowchunkError):
    """A data set that is missing, damaged or not what it says it is."""


class SpecMismatchError(FlowchunkError):
    """Data, policy or environment disagree about observations or actions."""


class CheckpointError(FlowchunkError):
    """A checkpoint that cannot be read or written."""


class SimulationError(FlowchunkError):
    """An environment that cannot be made, stepped or drawn."""


class TrainingError(FlowchunkError):
    """A training that cannot go on, because its numbers are not finite any more."""
