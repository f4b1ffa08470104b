"""Import, export and tracing of comparisons, on a real MLflow store."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console
from typer.testing import CliRunner

from alignment.artifacts import Artifact
from alignment.config.stages import ComparisonsConfig, RowSource, TokenizerConfig
from alignment.data.comparisons import build_comparisons
from alignment.data.readers import read_comparisons
from alignment.errors import ArtifactError, ConfigError, DataError
from alignment.journal import Journal
from alignment.records import Comparison, Rejected, read_records, write_records
from flows.cli.exchange import _text, read_part
from flows.cli.main import app
from flows.releases.dataset_card import write_card
from flows.releases.trace import trace, trace_view
from labeling.collection import ADJUDICATION, COLLECTION_FILE, Batch, Collection
from labeling.judgements.comparisons import comparisons
from labeling.judgements.parse import parse
from labeling.quality.screening import SENIOR, SetAside
from labeling.tasks.projects import Project
from labeling.tasks.tasks import make_task
from tests.alignment.tiny_world import write_lines
from tests.flows.tiny import run_stage
from tests.labeling.helpers import response_set
from tests.labeling.judgements.test_parse import annotation, exported, preference, rating

PROJECT = Project(
    id=4, kind="pairwise", title="t pairwise [1a2b3c4d]", overlap=1, screen_hash="1a2b3c4d", url="http://ls"
)
TASKS = {}
for number in range(24):
    one = response_set(number, ("Mara Lind.", f"Tom [bold]Berg[/bold] {number}."))
    made = make_task("pairwise", one.prompt, one.responses, 0)
    TASKS[made.uid] = made


SETTLED = list(TASKS)[7]


def labelling_stage(out: Path, _: Journal) -> Mapping[str, float]:
    """What the labelling stage leaves: 23 judgements for A, one tie, one in the quarantine; one is a senior's."""
    rows = []
    for i, task in enumerate(TASKS.values()):
        said = [preference("tie" if i == 0 else "a_2"), rating("a_helpful", 5), rating("b_helpful", 2)]
        rows += exported(task, annotation(said, 100 + i, by=i % 4))
    parsed = parse(rows, TASKS.values(), 1, "place")
    won, ties = comparisons(parsed.judgements, TASKS)
    batch = Batch(project=PROJECT, tasks=tuple(TASKS.values()), task_ids={uid: 9 + i for i, uid in enumerate(TASKS)})
    write_records(out / "comparisons.jsonl", [*won, *ties])
    write_records(out / "judgements.jsonl", parsed.judgements)
    write_records(out / "quarantine.jsonl", [Rejected(file="place", line=7, reason="unknown control 'x'")])
    (out / COLLECTION_FILE).write_text(Collection(batches=(batch,)).model_dump_json())
    before = next(row for row in won if row.task_uid == SETTLED).model_copy(update={"id": "cmp_before"})
    write_records(out / "set_aside.jsonl", [SetAside(reasons=(SENIOR,), comparison=before)])
    second = Batch(project=PROJECT.model_copy(update={"id": 5}), tasks=(TASKS[SETTLED],), task_ids={SETTLED: 80})
    (out / ADJUDICATION).mkdir()
    (out / ADJUDICATION / COLLECTION_FILE).write_text(Collection(batches=(second,)).model_dump_json())
    (out / "annotators.json").write_text(json.dumps([{"annotator_id": "1", "agreement_with_others": 0.75}]))
    (out / "screens").mkdir()
    (out / "screens" / "pairwise-1a2b3c4d.xml").write_text("<View/>")
    return {"judgements": 24.0}


@pytest.fixture
def collected(home: Path) -> Artifact:
    """A comparisons stage after a labelling stage."""
    labelled = run_stage("labeling", labelling_stage, config=TokenizerConfig())

    def stage(out: Path, journal: Journal) -> Mapping[str, float]:
        options = ComparisonsConfig(heldout_share=0.3)
        figures = build_comparisons(options, out, journal, seed=0, labelled=labelled.file("comparisons.jsonl"))
        write_card(out, "comparisons-1", labelled=labelled.path, files=[])
        return figures

    return run_stage("comparisons", stage, config=ComparisonsConfig(), inputs={"labelled": labelled})


def rows_of(artifact: Artifact, name: str = "comparisons") -> list[Comparison]:
    return read_records(artifact.file(f"{name}.jsonl"), Comparison)[0]


def words(shown: Any) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_the_card_joins_the_stage_and_the_labelling_before_it(collected: Artifact) -> None:
    card = json.loads(collected.file("card.json").read_text())
    assert (card["comparisons"], card["ties"], card["prompts"]) == (23, 1, 24)
    assert card["annotators"] == {"0": 6, "1": 6, "2": 6, "3": 6}
    assert card["guidelines"] == {"pairwise": "1a2b3c4d"} and card["projects"] == {"pairwise": PROJECT.labeling_url}
    assert card["quarantined"] == {"unknown control 'x'": 1} and card["set_aside"] == {SENIOR: 1}
    assert card["first_chosen"]["share"] == 1.0 and card["first_chosen"]["count"] == 23
    assert sum(card["splits"].values()) == 24
    logged = [file.path for file in MlflowClient().list_artifacts(collected.run_id, "output")]
    assert {"output/card.md", "output/card.json"} <= set(logged)
    assert "| pairwise | 1a2b3c4d |" in collected.file("card.md").read_text()


def test_a_comparison_leads_back_to_annotation_person_task_and_guidelines(collected: Artifact) -> None:
    row = next(row for row in rows_of(collected) if row.annotation_id == "105")
    found = trace(row.id)
    assert found["comparison"] == row.model_dump(mode="json") and found["run_id"] == collected.run_id
    assert found["split"] in ("train", "heldout_prompts", "heldout_annotators", "aside")
    assert (found["judgement"]["annotation_id"], found["judgement"]["lead_time"]) == ("105", 2.5)
    assert found["annotator"] == {"annotator_id": "1", "agreement_with_others": 0.75}
    place = list(TASKS).index(row.task_uid)
    assert place == 5 and found["task"]["task_url"] == f"http://ls/projects/4/data?task={9 + place}"
    assert found["task"]["shown"] == list(TASKS[row.task_uid].shown)
    settled = next(row for row in rows_of(collected) if row.task_uid == SETTLED)
    assert trace(settled.id)["task"]["task_url"] == "http://ls/projects/5/data?task=80"
    assert found["guidelines"]["version"] == "1a2b3c4d" and Path(found["guidelines"]["file"]).is_file()
    text = words(trace_view(found))
    for said in (
        "Who is the baker of town 5?",
        "Mara Lind.",
        "Tom [bold]Berg[/bold] 5.",
        "chosen, strength 2",
        "105",
        "1 (agrees with others on 0.75)",
        "2.5 s",
        row.task_uid,
        "1a2b3c4d",
        "helpful 3",
    ):
        assert said in text, text


def test_a_comparison_is_found_when_its_output_is_only_in_mlflow(collected: Artifact) -> None:
    row = rows_of(collected)[0]
    collected.path.rename(collected.path.with_name("elsewhere"))
    found = trace(row.id)
    assert found["comparison"]["id"] == row.id and "fetched" in found["artifact"]


def test_an_unknown_comparison_is_an_error_in_words(collected: Artifact) -> None:
    with pytest.raises(ArtifactError, match="no comparisons stage of a finished run has 'cmp_no'"):
        trace("cmp_no")


def test_a_comparison_of_others_says_what_is_not_known(home: Path) -> None:
    source = write_lines(home / "rows.jsonl", [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(20)])

    def stage(out: Path, journal: Journal) -> Mapping[str, float]:
        options = ComparisonsConfig(sources=(RowSource(path=str(source)),))
        figures = build_comparisons(options, out, journal, seed=0)
        write_card(out, "comparisons-2", labelled=None, files=[source])
        return figures

    made = run_stage("comparisons", stage, config=ComparisonsConfig(), files=[source])
    row = rows_of(made)[4]
    found = trace(row.id)
    assert found["judgement"] is None and found["comparison"]["annotation_id"] == "rows.jsonl:5"
    assert "rows.jsonl:5" in words(trace_view(found))
    assert json.loads(made.file("card.json").read_text())["sources"].keys() == {"rows.jsonl"}
    (dataset,) = MlflowClient().get_run(made.run_id).inputs.dataset_inputs
    assert dataset.dataset.name == "rows.jsonl" and dataset.dataset.source == source.as_uri()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_data_set_goes_out_by_command_and_comes_back(
    collected: Artifact, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / f"pairs.{form}"
    told = CliRunner().invoke(app, ["label", "export", str(collected.path), "--format", form, "--out", str(file)])
    assert told.exit_code == 0, told.output
    assert told.output.split() == ["23", str(file), "1", str(tmp_path / f"pairs.ties.{form}")]
    back = [
        row
        for name in (file, tmp_path / f"pairs.ties.{form}")
        for row in read_comparisons(RowSource(path=str(name)), None)[0]
    ]
    assert back == rows_of(collected)
    imported = CliRunner().invoke(app, ["label", "import", str(file), "--out", str(tmp_path / "in")])
    assert imported.exit_code == 0, imported.output
    assert read_records(tmp_path / "in" / "comparisons.jsonl", Comparison)[0] == back[:23]


def test_a_part_can_be_exported_alone(collected: Artifact) -> None:
    assert read_part(str(collected.path), "train") == rows_of(collected, "train")
    with pytest.raises(ConfigError, match="--part nothing: choose one of all, train"):
        read_part(str(collected.path), "nothing")
    with pytest.raises(ConfigError, match="is a file"):
        read_part(str(collected.file("comparisons.jsonl")), "train")
    with pytest.raises(DataError, match=r"rlhf label import` converts other formats"):
        read_part(str(write_lines(collected.path.parent / "x.jsonl", [{"chosen": "a"}])), "all")
    with pytest.raises(DataError, match="name the output of a comparisons stage"):
        read_part(str(collected.path.parent), "all")


def test_import_counts_what_does_not_fit_by_reason(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q"}, {"prompt": "q"}, 7]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    told = CliRunner().invoke(app, ["label", "import", str(file), "--out", str(tmp_path / "in")])
    assert told.exit_code == 0, told.output
    assert "2 no `chosen` and `rejected` among ['prompt']" in told.output
    assert "1 expected an object, not int" in told.output
    bad = read_records(tmp_path / "in" / "rejected.jsonl", Rejected)[0]
    assert [(row.line, row.file) for row in bad] == [(2, str(file)), (3, str(file)), (4, str(file))]


def test_import_names_what_nobody_reads(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Q?", "images": ["a.png"]}]
    rows = [{"prompt": asked, "chosen": "a", "rejected": "b", "note": "x"}]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    result = CliRunner().invoke(app, ["label", "import", str(file), "--out", str(tmp_path / "in")])
    assert result.exit_code == 0, result.output
    for words in ("no option reads", "'note'", "'prompt[].images'"):
        assert words in result.output


def test_a_label_config_may_be_utf_16(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "config.xml").write_text("<View/>é", encoding=encoding)
        assert _text(tmp_path / "config.xml") == "<View/>é"
    (tmp_path / "config.xml").write_bytes(b"<View/>\xe9")
    with pytest.raises(DataError, match=r"config\.xml cannot be read: .*as UTF-8"):
        _text(tmp_path / "config.xml")


def test_an_export_of_label_studio_goes_in_by_command(tmp_path: Path) -> None:
    task = next(iter(TASKS.values()))
    file = tmp_path / "export.json"
    file.write_text(json.dumps(exported(task, annotation([preference("b_3")]))))
    told = CliRunner().invoke(
        app, ["label", "import", str(file), "--format", "label-studio", "--out", str(tmp_path / "in")]
    )
    assert told.exit_code == 0, told.output
    (row,) = read_records(tmp_path / "in" / "comparisons.jsonl", Comparison)[0]
    assert row.strength == 3 and (tmp_path / "in" / "judgements.jsonl").read_text().count("\n") == 1


def test_an_output_directory_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}])
    (tmp_path / "out").touch()
    for out in ("out", "out/below"):
        result = CliRunner().invoke(
            app, ["label", "import", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / out)]
        )
        assert isinstance(result.exception, DataError) and "cannot be the output directory" in str(result.exception)


def test_a_file_without_anything_to_use_is_an_error(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"a": 1}])
    told = CliRunner().invoke(app, ["label", "import", str(file), "--out", str(tmp_path / "in")])
    assert isinstance(told.exception, DataError) and "contains no usable rows" in str(told.exception)
    missing = CliRunner().invoke(app, ["label", "import", "nowhere.jsonl", "--out", str(tmp_path / "in")])
    assert isinstance(missing.exception, DataError) and "the file nowhere.jsonl does not exist" in str(
        missing.exception
    )
