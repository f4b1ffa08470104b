"""Reward functions in TRL's signature: `def reward(prompts, completions, **kwargs)`, with names instead of positions.

TRL passes prompts and completions as text, or as messages where the prompts are conversations, and the other columns of
the data set under their names. A None for a response means that the function does not apply to it: it adds nothing.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.errors import ConfigError, DataError

OWN = ("prompts", "completions", "completion_ids")
EXPECTED = (
    "write it as `def reward(prompts: list[str], responses: list[str]) -> list[float]`, or as TRL does, "
    "`def reward(prompts, completions, **kwargs) -> list[float]`"
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class TRLReward:
    """A function in TRL's signature under ours; `rows` are the data set's rows by the text of their prompt."""

    function: Callable[..., Sequence[float | None]]
    rows: Mapping[str, Row] = field(default_factory=dict)

    def __call__(
        self, prompts: list[str], responses: list[str], response_ids: Sequence[Sequence[int]] = ()
    ) -> Sequence[float]:
        """The function's values, a None as 0."""
        rows = [self.rows.get(prompt, {}) for prompt in prompts]
        arguments: dict[str, list[Any]] = {
            "prompts": [row.get("prompt", prompt) for row, prompt in zip(rows, prompts, strict=True)],
            "completions": [_completion(row, text) for row, text in zip(rows, responses, strict=True)],
            "completion_ids": [list(ids) for ids in response_ids],
        }
        arguments |= {name: [row[name] for row in rows] for name in _columns(rows)}
        parameters = inspect.signature(self.function).parameters.values()
        unnamed = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]  # those before a `/`
        positional = [arguments.pop(p.name, p.default) for p in unnamed]
        if not _takes_any(self.function):
            arguments = {name: values for name, values in arguments.items() if name in _names(self.function)}
        values: Any = self.function(*positional, **arguments)
        if isinstance(values, list | tuple):
            values = [0.0 if value is None else value for value in values]
        given: Sequence[float] = values
        return given


def as_reward_function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or one in TRL's signature under ours. Raises ConfigError if it is neither."""
    if isinstance(function, TRLReward):
        return function
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"reward '{name}' is asynchronous, which is not supported: {EXPECTED}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in, without a signature to read
        return function
    parameters = signature.parameters.values()
    keywords = all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters) and bool(parameters)
    if keywords or {"completions", "completion_ids"} & {*signature.parameters}:
        return TRLReward(function)
    try:
        signature.bind([], [])
    except TypeError as error:
        raise ConfigError(f"reward '{name}' takes {signature}: {EXPECTED}") from error
    return function


def with_rows(name: str, reward: TRLReward, rows: Sequence[Row], texts: Sequence[str]) -> TRLReward:
    """The function with the data set's rows, `texts` being their prompts as a reward function reads them.

    Raises ConfigError if it asks for a column that is not there, and DataError if rows with the same prompt differ.
    """
    columns = _columns(rows)
    parameters = [p for p in inspect.signature(reward.function).parameters.values() if p.name not in OWN]
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    unknown = [parameter for parameter in required if parameter not in columns]
    if unknown:
        raise ConfigError(
            f"reward '{name}' asks for {unknown[0]!r}, and the prompts have the columns {columns}: pass the prompts as "
            "a datasets.Dataset with that column, or give the parameter a default"
        )
    passed = columns if _takes_any(reward.function) else [p.name for p in parameters if p.name in columns]
    by_text: dict[str, Row] = {}
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        first = by_text.setdefault(text, row)
        other = [column for column in passed if first[column] != row[column]]
        if other:
            raise DataError(
                f"prompt {number} reads as an earlier one and has another {other[0]!r}, so reward '{name}' could not "
                f"tell them apart: {text!r:.80}; keep one of them, or remove the column"
            )
    return TRLReward(reward.function, by_text)


def _completion(row: Row, text: str) -> str | list[dict[str, str]]:
    """The response as TRL passes it: a message if the prompt is one."""
    return [{"role": "assistant", "content": text}] if isinstance(row.get("prompt"), list) else text


def _columns(rows: Sequence[Row]) -> list[str]:
    """The columns that every row has, beside the prompt."""
    names = list(rows[0]) if rows else []
    return [name for name in names if name not in ("prompt", "completion") and all(name in row for row in rows)]


def _names(function: Callable[..., Any]) -> set[str]:
    return {*inspect.signature(function).parameters}


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
