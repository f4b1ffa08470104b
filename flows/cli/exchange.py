"""`rlhf label import`, `export`, `demonstrations` and `show`."""

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.bounded import MIB
from alignment.config.stages import RowSource
from alignment.data.readers import read_comparisons
from alignment.data.used_columns import SourceNotes
from alignment.encodings import bounded_text
from alignment.errors import ArtifactError, ConfigError, DataError
from alignment.paths import is_directory, is_file
from alignment.records import Comparison, Record, Rejected, read_records, write_records
from flows.cli.common import AsJson, queries
from flows.console import console, echo

if TYPE_CHECKING:
    from labeling.judgements.layout import LayoutOptions

PARTS = ("all", "train", "heldout_prompts", "heldout_annotators", "aside")


class ImportFormat(StrEnum):
    """What `rlhf label import` reads."""

    auto = "auto"
    hh = "hh"
    oasst = "oasst"
    scores = "scores"
    records = "records"
    label_studio = "label-studio"
    arena = "arena"
    arena_55k = "arena-55k"
    argilla = "argilla"
    helpsteer = "helpsteer"
    helpsteer3 = "helpsteer3"
    nectar = "nectar"
    orca = "orca"
    pku = "pku"
    shp = "shp"
    summarize_from_feedback = "summarize-from-feedback"
    ultrafeedback = "ultrafeedback"
    webgpt = "webgpt"


class ExportFormat(StrEnum):
    """What `rlhf label export` writes."""

    parquet = "parquet"
    jsonl = "jsonl"


def import_judgements(
    file: Annotated[Path, typer.Argument(help="A file: JSON lines, JSON, CSV, TSV or Parquet, plain or gzipped.")],
    out: Annotated[Path, typer.Option(help="Output directory of comparisons and rejected rows.")],
    form: Annotated[
        ImportFormat,
        typer.Option("--format", help="Format of the file; auto: what TRL reads, and files of `rlhf label export`."),
    ] = ImportFormat.auto,
    columns: Annotated[
        str, typer.Option(help="Label Studio: fields of a project of others, as prompt=...,left=...,right=...")
    ] = "",
    label_config: Annotated[
        Path | None, typer.Option(help="Label Studio: the project's label config (XML), which names the fields.")
    ] = None,
    control: Annotated[str, typer.Option(help="Label Studio: the control with the preference.")] = "",
    choice: Annotated[
        list[str] | None,
        typer.Option(help="Label Studio: what a choice means, as left=CHOICE, right=, tie= or none=; can be repeated."),
    ] = None,
    buckets: Annotated[str, typer.Option(help="Label Studio: a ranker's buckets, from best to worst.")] = "",
) -> None:
    """Import comparisons from a file or a project's JSON export from Label Studio; count rejected rows by reason.

    A recipe takes the result with comparisons.sources: [{path: OUT/comparisons.jsonl, format: records}].
    """
    if not is_file(file):
        raise DataError(f"the file {file} does not exist; check the path (relative paths start at {Path.cwd()})")
    if form is ImportFormat.label_studio:
        files, bad = _from_label_studio(file, _layout_options(columns, label_config, control, choice or [], buckets))
    elif columns or label_config or control or choice or buckets:
        raise ConfigError("--columns, --label-config, --control, --choice and --buckets need --format label-studio")
    else:
        files, bad = _from_external(file, form)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out} cannot be the output directory ({error.strerror}): name another with --out") from error
    for name, rows in files.items():
        write_records(out / name, rows)
    write_records(out / "rejected.jsonl", bad)
    for name, rows in files.items():
        echo(f"{len(rows):7} {out / name}")
    echo(f"{len(bad):7} {out / 'rejected.jsonl'}")
    for reason, count in Counter(row.reason for row in bad).most_common():
        echo(f"{count:15} {reason}")
    if not any(files.values()):
        raise DataError(f"{file} contains no usable rows; the reasons are in {out / 'rejected.jsonl'}")


def _from_external(file: Path, form: ImportFormat) -> tuple[dict[str, Sequence[Record]], list[Rejected]]:
    notes = SourceNotes("comparisons")
    good, bad = read_comparisons(RowSource.model_validate({"path": str(file), "format": form.value}), None, notes)
    for line in notes.lines(str(file)):
        echo(line)
    return {"comparisons.jsonl": good}, bad


def _layout_options(
    columns: str, label_config: Path | None, control: str, choices: Sequence[str], buckets: str
) -> "LayoutOptions | None":
    """The layout that the options name, None without any."""
    from labeling.judgements.layout import LayoutOptions

    pairs = [part.partition("=") for part in columns.split(",") if part]
    meanings = [part.partition("=") for part in choices]
    if invalid := [name for name, sign, value in [*pairs, *meanings] if not (name and sign and value)]:
        raise ConfigError(f"{invalid[0]!r} is not NAME=VALUE; --columns takes such as prompt=question,left=a,right=b")
    if label_config is not None and not is_file(label_config):
        raise DataError(f"the label config {label_config} does not exist; save the XML of the project's settings there")
    options = LayoutOptions(
        columns={name.strip(): value.strip() for name, _, value in pairs},
        label_config="" if label_config is None else _text(label_config),
        control=control,
        choices={value: name for name, _, value in meanings},
        buckets=tuple(name.strip() for name in buckets.split(",") if name.strip()),
    )
    return None if options == LayoutOptions() else options


def _text(path: Path) -> str:
    try:
        return bounded_text(path, MIB)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"the label config {path} cannot be read: {error}; save the XML of the settings there, as UTF-8"
        ) from error


def _from_label_studio(
    file: Path, options: "LayoutOptions | None"
) -> tuple[dict[str, Sequence[Record]], list[Rejected]]:
    from labeling.judgements.imports import import_export

    export = import_export(file, options)
    if export.layout:
        echo(f"read {file}: {export.layout}")
    rows = [*export.comparisons, *export.ties]
    files: dict[str, Sequence[Record]] = {
        "comparisons.jsonl": rows,
        "demonstrations.jsonl": export.demonstrations,
        "judgements.jsonl": export.judgements,
    }
    return files, export.quarantined


def export(
    source: Annotated[str, typer.Argument(help="A directory or file with comparisons, or the name of a release.")],
    out: Annotated[Path, typer.Option(help="Output file; ties are written to NAME.ties.SUFFIX next to it.")],
    form: Annotated[ExportFormat, typer.Option("--format", help="Format of the file.")] = ExportFormat.parquet,
    part: Annotated[str, typer.Option(help=f"Split to export: {', '.join(PARTS)}.")] = "all",
) -> None:
    """Export comparisons as preference data for TRL: prompt, chosen, rejected, margin and provenance columns.

    `rlhf label import FILE` and recipes read such a file back without loss.
    """
    from alignment.data.trl_format import write_preferences

    rows = read_part(source, part)
    for path, count in write_preferences(rows, out, form.value).items():
        echo(f"{count:7} {path}")


def export_written(
    out: Annotated[Path, typer.Option(help="Output JSONL file; rejected rows are written next to it.")],
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]", help="The name of a collection; all without one.")
    ] = None,
) -> None:
    """Export the answers that people wrote, as of the last sync, as demonstrations.

    A recipe takes them with demonstrations.sources: [{path: OUT, format: records}].
    """
    from flows.annotation.collections import find_numbers
    from flows.annotation.label_studio import annotation_store
    from flows.annotation.written import written_demonstrations

    store = annotation_store()
    rows, rejected = written_demonstrations(store, find_numbers(name or (), store.projects()))
    if not rows:
        raise DataError("the store has no written answers yet; `rlhf label sync` updates it")
    rejected_path = out.with_name(f"{out.stem}.rejected.jsonl")
    for path, count in ((out, write_records(out, rows)), (rejected_path, write_records(rejected_path, rejected))):
        echo(f"{count:7} {path}")


def read_part(source: str, part: str) -> list[Comparison]:
    """The comparisons of a file, a stage's directory or a release."""
    if part not in PARTS:
        raise ConfigError(f"--part {part}: choose one of {', '.join(PARTS)}")
    path = Path(source)
    if not is_file(path):
        directory = path if is_directory(path) else release_comparisons(source)
        path = directory / f"{'comparisons' if part == 'all' else part}.jsonl"
    elif part != "all":
        raise ConfigError(f"--part {part} needs a directory or a release, but {source} is a file")
    if not is_file(path):
        raise DataError(f"{path} does not exist; name the output of a comparisons stage, a file or a release")
    rows, bad = read_records(path, Comparison)
    if bad:
        raise DataError(
            f"{path} line {bad[0].line} is no comparison ({bad[0].reason}); `rlhf label import` converts other formats"
        )
    return rows


def release_comparisons(release: str) -> Path:
    """The directory with the comparisons of a release, local or downloaded from MLflow."""
    with queries("mlflow"):
        from flows.releases.report import release_run
        from flows.releases.trace import stage_output

        run_id = release_run(release).data.tags.get("rlhf.run.comparisons")
        if run_id is None:
            raise ArtifactError(f"release {release} has no comparisons stage; run its recipe again")
        return stage_output(run_id)


def show(
    comparison: Annotated[str, typer.Argument(help="The id of a comparison, as in comparisons.jsonl (cmp_...).")],
    as_json: AsJson = False,
) -> None:
    """Show a comparison: prompt, both responses, annotator, task, project and guidelines."""
    with queries("mlflow"):
        from flows.releases.trace import trace, trace_view

        provenance = trace(comparison)
    if as_json:
        echo(json.dumps(provenance, indent=2, ensure_ascii=False), lines=True)
    else:
        console().print(trace_view(provenance))
