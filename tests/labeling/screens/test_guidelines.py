"""Guidelines: of the package in five languages, and of a team in a folder of files."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from labeling.config import LANGUAGES, LabelingConfig
from labeling.errors import GuidelinesError
from labeling.judgements.controls import controls_of
from labeling.screens.guidelines import Labels, copy_guidelines, read_guidelines, shipped
from labeling.screens.render import guidelines_version, screen, screens

CONCISE = {"name": "concise", "title": "Concise", "question": "is it as short as it can be?", "keys": ["z", "x"]}
ROBOTIC = {"name": "robotic", "title": "Robotic", "meaning": "it speaks of itself as a machine."}


def folder(path: Path, screen_yaml: dict | None = None, **texts: str) -> str:
    path.mkdir(exist_ok=True)
    if screen_yaml is not None:
        (path / "screen.yaml").write_text(yaml.safe_dump(screen_yaml, allow_unicode=True), encoding="utf-8")
    for name, text in texts.items():
        (path / f"{name}.md").write_text(text, encoding="utf-8")
    return str(path)


def plain(criteria: bool = True) -> list[dict]:
    rows = shipped("en").criteria if criteria else shipped("en").flags
    return [row.model_dump(mode="json", exclude_none=True) for row in rows]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_says_everything(language: str) -> None:
    told, english = shipped(language), shipped("en")
    assert told.language == language and told.direction == ("rtl" if language == "ar" else "ltr")
    assert [(row.name, row.keys) for row in told.marks] == [(row.name, row.keys) for row in english.marks]
    if language != "en":
        same = [name for name in Labels.model_fields if getattr(told.labels, name) == getattr(english.labels, name)]
        assert same in ([], ["assistant"]), f"not translated: {same}"  # the same word in French
        titles = zip(told.marks, english.marks, strict=True)
        assert [mark.title for mark, other in titles if mark.title == other.title] in ([], ["Sexual"], ["Violent"])
    for text, other in ((told.judging, english.judging), (told.writing, english.writing)):
        for mark in (r"^# ", r"^## ", r"^- ", r"^\d\. ", r"\*\*", r"\{criteria\}", r"\{flags\}"):
            assert len(re.findall(mark, text, re.M)) == len(re.findall(mark, other, re.M)), (language, mark)
    ElementTree.fromstring(screen("pairwise", told).label_config)


def test_flags_cover_what_instructgpt_asked_for() -> None:
    flags = {flag.name for flag in shipped("en").flags}
    assert flags >= {"misses_task", "wrong_for_customers", "made_up_fact", "misses_condition", "sexual", "violent"}
    assert flags >= {"encourages_harm", "denigrates", "harmful_advice", "opinion", "moralizes"}


def test_a_team_adds_a_criterion_and_a_flag_with_a_file(tmp_path: Path) -> None:
    directory = folder(
        tmp_path / "ours",
        {"criteria": [*plain(), CONCISE], "flags": [*plain(False), ROBOTIC]},
        guidelines="# Ours\n\n{flags}",
    )
    told = read_guidelines(directory)
    assert told.criteria[-1].title == "Concise" and told.labels == shipped("en").labels
    assert told.text("pairwise").startswith("# Ours\n\n- **Misses the task** - ")
    assert "- **Concise** - is it as short" in told.text("demonstration")  # the package's, with their criteria
    config = screen("pairwise", told).label_config
    controls = controls_of(config)
    assert controls.criteria[-1] == "concise" and controls.flags[-1] == "robotic"
    assert controls.guidelines == told.version == guidelines_version(config) != shipped("en").version
    ranking = controls_of(screen("ranking", told, ratings=True).label_config)
    assert (ranking.criteria, ranking.flags) == (controls.criteria, controls.flags)


def test_a_folder_in_another_language_starts_from_that_language(tmp_path: Path) -> None:
    told = read_guidelines(folder(tmp_path, {"language": "fr", "labels": {"done": "Fini ?"}}))
    assert (told.labels.done, told.labels.tie) == ("Fini ?", "Aucune différence") and told.writing == shipped(
        "fr"
    ).writing


BROKEN = [
    ({"languages": "fr"}, "it has languages; it takes language, criteria, flags and labels"),
    ({"criteria": []}, "criteria: Tuple should have at least 1 item"),
    ({"criteria": [CONCISE, CONCISE]}, "criteria: two have the name concise"),
    ({"criteria": [CONCISE | {"keys": ["z", "7"]}]}, "the key 7 is used twice"),
    ({"criteria": [CONCISE | {"name": "Kurz & gut"}]}, "criteria.0.name"),
    ({"flags": [{"name": "robotic", "title": "Robotic"}]}, "flags.0.meaning: Field required"),
    ({"labels": {"dun": "?"}}, "labels.dun: Extra inputs are not permitted"),
    ({"labels": {"key": "{criterion}"}}, "labels.key needs {side}"),
    ({"labels": {"answer": 'An"swer'}}, "labels.answer"),
    ({"labels": {"a_2": "No difference"}}, "two choices of one question have the same label"),
    ({"language": "de"}, "labels.guidelines is missing: translate 'Guidelines (click to open or close)'"),
    ({"labels": ["a"]}, "labels is no mapping"),
]


@pytest.mark.parametrize(("values", "reason"), BROKEN)
def test_what_is_wrong_with_a_folder_is_said_with_its_place(tmp_path: Path, values: dict, reason: str) -> None:
    with pytest.raises(GuidelinesError, match=re.escape(reason)) as caught:
        read_guidelines(folder(tmp_path, values))
    assert str(tmp_path / "screen.yaml") in str(caught.value)


def test_other_faults_of_a_folder(tmp_path: Path) -> None:
    for name, content, reason in (
        ("screen.yaml", b"a: [", "no valid YAML"),
        ("guidelines.md", b"\xff", "cannot be read as UTF-8"),
        ("demonstrations.md", b" \n", "is empty"),
    ):
        directory = tmp_path / name
        directory.mkdir()
        (directory / name).write_bytes(content)
        with pytest.raises(GuidelinesError, match=reason):
            read_guidelines(str(directory))
    with pytest.raises(GuidelinesError, match="name a directory with at least one of them"):
        read_guidelines(str(tmp_path))


def test_simulated_annotators_rate_what_the_town_judges(tmp_path: Path) -> None:
    directory = folder(tmp_path, {"criteria": [*plain(), CONCISE]})
    with pytest.raises(
        GuidelinesError, match=r"asks for concise, harmless, helpful, truthful: set labeling.annotators"
    ):
        screens(LabelingConfig(guidelines=directory))
    assert screens(LabelingConfig(guidelines=directory, annotators="people"))
    assert screens(LabelingConfig(guidelines="zh"))["pairwise"].guidelines == shipped("zh").version


def test_a_folder_is_an_input_of_the_stage_and_a_language_is_not(tmp_path: Path) -> None:
    assert LabelingConfig(guidelines="ar").files == {} and "guidelines" not in LabelingConfig().model_dump()
    assert LabelingConfig(guidelines=str(tmp_path)).files == {"guidelines": str(tmp_path)}


def test_a_copy_says_the_same_as_the_package(tmp_path: Path) -> None:
    copy_guidelines("es", tmp_path / "ours")
    assert read_guidelines(str(tmp_path / "ours")) == shipped("es")
    for language, directory in (("de", tmp_path / "new"), ("es", tmp_path / "ours")):
        with pytest.raises(GuidelinesError, match=r"choose from en|exists already"):
            copy_guidelines(language, directory)


def test_texts_of_guidelines_cannot_read_the_task_or_leave_their_place(tmp_path: Path) -> None:
    evil = '# <b>x</b> $prompt {style} " </View>'
    told = read_guidelines(folder(tmp_path, {"labels": {"tie": '$response_a "&'}}, guidelines=evil))
    root = ElementTree.fromstring(screen("pairwise", told).label_config)
    (shown,) = [tag.get("value") for tag in root.iter("Markdown") if "x</b>" in str(tag.get("value"))]
    assert shown == evil.replace("$", "＄")
    (tie,) = [tag.get("value") for tag in root.iter("Choice") if tag.get("alias") == "tie"]
    assert tie == '＄response_a "&'
