"""What is compared: each row is options on top of the fair pair's, and the TRL run that it is held against."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.workload import Shape


@dataclass(frozen=True)
class Row:
    """A run of ours with options of PPOConfig, or of TRL; `rival` names the row that it is held against."""

    name: str
    rival: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    trl: bool = False
    bf16: bool = False
    processes: int = 1
    batch_size: int = 64
    max_new_tokens: int = 64
    shape: Shape = field(default_factory=Shape)


ROWS = [
    Row("TRL", trl=True),
    Row("separate", "TRL"),
    Row("shared trunk", "TRL", {"layout": "shared_trunk"}),
    Row("LoRA", "TRL", {"layout": "lora"}),
]
ON_REQUEST = [
    Row("separate, 2 processes", "TRL", processes=2),
    Row("TRL bf16", trl=True, bf16=True),
    Row("separate bf16", "TRL bf16", {"bfloat16": True}),
    Row("shared trunk bf16", "TRL bf16", {"layout": "shared_trunk", "bfloat16": True}),
    Row("LoRA bf16", "TRL bf16", {"layout": "lora", "bfloat16": True}),
    Row("separate, recomputing", "TRL", {"gradient_checkpointing": True}),
]


def _pair(what: str, **changes: Any) -> list[Row]:
    """TRL and ours on another size of work."""
    return [Row(f"TRL, {what}", trl=True, **changes), Row(f"separate, {what}", f"TRL, {what}", **changes)]


GROWTH = [
    *_pair("batch 16", batch_size=16),
    *_pair("batch 256", batch_size=256),
    *_pair("60-token responses", shape=Shape(response_tokens=60), max_new_tokens=192),
    *_pair("width 128", shape=Shape(hidden_size=128)),
    *_pair("width 512", shape=Shape(hidden_size=512)),
]


def chosen(names: list[str], growth: bool) -> list[Row]:
    """The rows of these names with their rivals, or the usual ones, and those of growth where asked for."""
    known = {row.name: row for row in (*ROWS, *ON_REQUEST, *GROWTH)}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"there is no row {unknown}; there are {list(known)}")
    if not names:
        return ROWS + (GROWTH if growth else [])
    wanted = {rival for name in names if (rival := known[name].rival)} | set(names)
    return [row for row in known.values() if row.name in wanted or (growth and row in GROWTH)]
