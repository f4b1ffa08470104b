"""Every error this package raises on purpose. The message says what, which value, and what to do next.

RLHFError
├── ConfigError       an option that is unknown, of the wrong type, or impossible together with another
├── DataError         input rows or files that cannot be used
├── CheckpointError   a model or tokenizer that cannot be loaded or does not fit its use
├── ArtifactError     a stage output that is missing, incomplete or was changed
├── TrainingError     a run that cannot go on (a loss that is not finite, a policy that diverged)
└── GateError         a figure that a gate of the recipe demands and that was not reached
"""


class RLHFError(Exception):
    """Base of all errors raised on purpose; the command line prints these without a traceback."""


class ConfigError(RLHFError):
    """An option that is unknown, of the wrong type, or impossible together with another."""


class DataError(RLHFError):
    """Input rows or files that cannot be used."""


class CheckpointError(RLHFError):
    """A model or tokenizer that cannot be loaded or does not fit its use."""


class ArtifactError(RLHFError):
    """A stage output that is missing, incomplete or was changed after it was published."""


class TrainingError(RLHFError):
    """A training run that cannot go on; the message names the last good checkpoint."""


class GateError(RLHFError):
    """A gate of the recipe that was not passed."""
