"""Lossless conversion between comparisons and TRL's preference data.

A row is TRL's conversational preference format with an explicit prompt: `prompt`, `chosen` and `rejected` are lists of
messages. `margin` is the strength, which TRL's reward trainer subtracts inside the loss as Llama 2 does (Touvron et al.
2023, equation 2; its scale for large margins, too, is 3, 2, 1 and 0). Fields that TRL does not have are in further
columns, so that the conversion back is exact.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from alignment.bounded import loads_kept
from alignment.data.conversations import BadRow, as_messages, only_text
from alignment.data.formats import EXPORTED
from alignment.errors import DataError
from alignment.records import Comparison, Prompt, Response

Format = Literal["parquet", "jsonl"]
NESTED = ("id", "prompt", "chosen", "rejected", "criteria")
PLAIN = tuple(name for name in Comparison.model_fields if name not in NESTED)


def to_preference(row: Comparison) -> dict[str, Any]:
    """A comparison as a row of preference data."""
    return {
        "prompt": [message.model_dump() for message in row.prompt.messages],
        "chosen": [{"role": "assistant", "content": row.chosen.text}],
        "rejected": [{"role": "assistant", "content": row.rejected.text}],
        "margin": float(row.strength),
        EXPORTED: row.id,
        "prompt_id": row.prompt.id,
        "chosen_id": row.chosen.id,
        "rejected_id": row.rejected.id,
        "prompt_kind": row.prompt.kind,
        "prompt_split": row.prompt.split,
        "prompt_meta": json.dumps(row.prompt.meta, sort_keys=True),
        "criteria": json.dumps(row.criteria, sort_keys=True),
        **{name: getattr(row, name) for name in PLAIN},
    }


def from_preference(row: Mapping[str, Any]) -> Comparison:
    """The inverse of `to_preference`. Raises BadRow for an incomplete row."""
    missing = [
        name for name in ("prompt_id", "chosen_id", "rejected_id", "prompt", "chosen", "rejected") if name not in row
    ]
    if missing:
        raise BadRow(f"a row with {EXPORTED}, but without {', '.join(missing)}")
    return Comparison(
        id=row[EXPORTED],
        prompt=Prompt(
            id=row["prompt_id"],
            messages=tuple(as_messages(row["prompt"], "user")),
            kind=row.get("prompt_kind") or "",
            split=row.get("prompt_split") or "train",
            meta=loads_kept(row.get("prompt_meta") or "{}"),
        ),
        chosen=Response(id=row["chosen_id"], text=only_text(row["chosen"])),
        rejected=Response(id=row["rejected_id"], text=only_text(row["rejected"])),
        criteria=loads_kept(row.get("criteria") or "{}"),
        **{name: row[name] for name in PLAIN if row.get(name) is not None},
    )


def write_preferences(rows: Sequence[Comparison], path: Path, form: Format) -> dict[str, int]:
    """Write the rows with a winner to `path`, and the ties, if any, beside it as NAME.ties.SUFFIX; return the counts.

    Ties have no chosen response, so they must not be in a trainer's file. An old file of ties is removed.
    """
    parts = {path: [row for row in rows if row.strength], ties_file(path): [row for row in rows if not row.strength]}
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, records in parts.items():
        if records or target == path:
            temporary = target.with_name(target.name + ".partial")
            (_write_parquet if form == "parquet" else _write_jsonl)(records, temporary)
            temporary.replace(target)
        else:
            target.unlink(missing_ok=True)
    return {str(target): len(records) for target, records in parts.items() if records or target == path}


def ties_file(path: Path) -> Path:
    """The path of the ties of an export."""
    return path.with_name(f"{path.stem}.ties{path.suffix}")


def _write_jsonl(rows: Iterable[Comparison], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(to_preference(row), ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(rows: Iterable[Comparison], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    messages = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    kinds = {
        "prompt": messages,
        "chosen": messages,
        "rejected": messages,
        "margin": pyarrow.float64(),
        "strength": pyarrow.int8(),
        "weight": pyarrow.float64(),
        "chosen_first": pyarrow.bool_(),
    }
    columns = [*_columns()]
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
    try:
        table = pyarrow.Table.from_pylist([to_preference(row) for row in rows], schema=schema)
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: Parquet cannot store lone surrogates ({error}); export as JSONL") from error
    pyarrow.parquet.write_table(table, path)


def _columns() -> Iterable[str]:
    message = {"role": "user", "content": "?"}
    sides = {side: {"id": side, "text": side} for side in ("chosen", "rejected")}
    return to_preference(Comparison.model_validate({"id": "c", "prompt": {"id": "p", "messages": [message]}, **sides}))
