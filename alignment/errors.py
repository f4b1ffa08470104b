"""The errors that this package raises. Messages say what is wrong, with which value, and what to do next.

RLHFError
├── ConfigError       an option that is unknown, of the wrong type, or impossible together with another
├── PathError         a name that leads out of the directory it belongs to
├── DataError         input rows or files that cannot be used
│   └── UnfitRowError one row that a model cannot read; stages put it aside and go on
├── CheckpointError   a model or tokenizer that cannot be loaded or does not fit its use
├── ArtifactError     a stage output that is missing, incomplete or was changed
├── TrainingError     a run that cannot continue (a loss that is not finite, a policy that diverged)
└── GateError         a metric below the threshold of a gate of the recipe
"""

from collections.abc import Iterator


class RLHFError(Exception):
    """Base of all errors of this package; the command line prints them without a traceback."""


class ConfigError(RLHFError):
    """An option that is unknown, of the wrong type, or impossible together with another."""


class PathError(RLHFError):
    """A name that leads out of the directory it belongs to, or is no name of a file."""


class DataError(RLHFError):
    """Input rows or files that cannot be used."""


class UnfitRowError(DataError):
    """A row that a model cannot read: refused by the chat template or the tokenizer, or too long."""


class TooLongError(UnfitRowError):
    """A row with more tokens than an option or the context allows."""


class CheckpointError(RLHFError):
    """A model or tokenizer that cannot be loaded or does not fit its use."""


class ArtifactError(RLHFError):
    """A stage output that is missing, incomplete or was changed after it was published."""


class TrainingError(RLHFError):
    """A training run that cannot continue; the message names the last good checkpoint."""


class GateError(RLHFError):
    """A gate of the recipe that was not passed."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and the chain of its causes, the latest first, with the members of groups."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting.append(current.__cause__ or current.__context__)
        waiting += current.exceptions if isinstance(current, BaseExceptionGroup) else ()
