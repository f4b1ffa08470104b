"""What the pages say is so: options with their defaults, logged values, files, and examples that run."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alignment.config.stages import ComparisonsConfig
from alignment.ppo import PPOConfig
from flows.annotation import collect as stage
from labeling.config import LabelingConfig, QualityOptions, Screening
from tests.alignment.ppo import world

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
LABELING = (ROOT / "docs" / "labeling.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE, flags=re.MULTILINE)


def test_the_page_has_every_option_once_with_its_default() -> None:
    documented = [(name, ast.literal_eval(default)) for name, default in ROWS]
    options = {name: field.default for name, field in PPOConfig.model_fields.items()}
    assert dict(documented) == options
    assert len(documented) == len(options)


def first_example() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert isinstance(blocks[0], str)
    return blocks[0]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[Path, str]:
    """The first example of the page, on a random model and for two steps: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("example")
    world.policy(max_position_embeddings=64).save_pretrained(folder / "model")
    world.tokenizer().save_pretrained(folder / "model")
    code = first_example()
    for given, here in (('"path or hub id"', '"model"'), ("steps=20", "steps=2")):
        assert code.count(given) == 1, given
        code = code.replace(given, here)
    (folder / "first.py").write_text(code, encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "first.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_first_example_runs_and_is_ten_lines(example) -> None:
    folder, printed = example
    assert len([line for line in first_example().splitlines() if line.strip()]) <= 10
    assert printed.startswith("run/model ")
    assert (folder / "run" / "model" / "model.safetensors").exists()


def test_the_page_explains_every_value_that_is_logged(example) -> None:
    folder, _ = example
    last = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    names = {name for name in json.loads(last)["values"] if not name.startswith("reward/")}
    assert len(names) > 20
    assert not [name for name in names if f"`{name}`" not in PAGE]


@pytest.mark.parametrize("page", [PAGE, LABELING], ids=["ppo", "labeling"])
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    links = {link for link in re.findall(r"\]\(([^)]+)\)", page) if "://" not in link}
    files = {link.partition("#")[0] for link in links}
    assert not [link for link in files if link and not (ROOT / "docs" / link).exists()]
    titles = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert not [link for link in links if link.startswith("#") and link not in anchors]


def test_the_page_on_labelling_has_the_limits_of_screening_with_their_defaults() -> None:
    told = {name: float(value) for name, value in re.findall(r"`(\w+)` \(([\d.]+)\)", LABELING)}
    told["significance"] = float(re.search(r"`significance` \(([\d.]+)\)", LABELING)[1])  # type: ignore[index]
    fields = {**Screening.model_fields, **QualityOptions.model_fields}
    assert told == {name: fields[name].default for name in told}
    limits = {name for name in Screening.model_fields if name.startswith(("minimum", "maximum", "signif"))}
    assert limits | {"dispute_ranking", "dispute_steps"} == set(told)


def test_the_example_and_the_files_of_the_page_on_labelling() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", LABELING, flags=re.MULTILINE | re.DOTALL)
    example, opened = map(yaml.safe_load, blocks)
    assert LabelingConfig.model_validate(opened["labeling"]).choose.by == "policies"
    assert LabelingConfig.model_validate(example["labeling"]).quality.adjudicate
    assert ComparisonsConfig.model_validate(example["comparisons"]).weights == "reliability"
    written = Path(stage.__file__).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.jsonl?)`", LABELING.partition("## Agreement")[0]):
        assert f'"{name}"' in written, name
