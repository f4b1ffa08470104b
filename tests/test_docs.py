"""Documentation checks: commands and options exist, examples run, recipes validate, defaults and values are listed."""

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core
import yaml
from pydantic import TypeAdapter

from alignment.config.rollout import RolloutConfig
from alignment.errors import ConfigError
from alignment.ppo import PPOConfig
from flows.annotation import collect as stage
from flows.cli.main import app
from flows.recipe.schema import Recipe, load_recipe, recipes
from labeling.config import QualityOptions, Screening
from tests.alignment.ppo import world

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
GUIDES = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "LOG.md"]
PACKAGES = ("alignment", "labeling", "flows")
PAGES = [README, CONTRIBUTING, *GUIDES]
PPO = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
LABELING = (ROOT / "docs" / "labeling.md").read_text(encoding="utf-8")
OPTIONS = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PPO, flags=re.MULTILINE)
UsageError = typer.BadParameter.__mro__[1]  # of the click that Typer brings along
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language; commands stand in blocks without one."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Every command line in a page's blocks without a language, as words; `[--optional]` parts are taken."""
    for line in "".join(blocks(page, "")).replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("[--", "--").replace("]", ""), comments=True)
        yield from ([*part] for part in split_at("&&", words))


def split_at(separator: str, words: list[str]) -> Iterator[list[str]]:
    start = 0
    for index, word in enumerate([*words, separator]):
        if word == separator:
            yield [word for word in words[start:index] if not re.fullmatch(r"[A-Z_]+=.*", word)]
            start = index + 1


def check_command(words: list[str]) -> None:
    """Parse the words of an `rlhf` command as the program would, without running it."""
    command = typer.main.get_command(app)
    context = command.make_context("rlhf", words[1:])
    while isinstance(command, typer.core.TyperGroup):
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, arguments, parent=context)


@by_page
def test_commands_of_the_pages_are_commands_of_the_program(page: Path) -> None:
    for words in commands(page):
        if words and words[0] == "rlhf":
            check_command(words)


@by_page
def test_make_targets_and_modules_that_the_pages_name_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    for words in commands(page):
        if words and words[0] == "make":
            assert words[1] in targets, words
    for module in re.findall(r"python -m ((?:benchmarks|flows|tests)\.[a-z_.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


@by_page
def test_recipes_that_are_run_with_overrides_validate(page: Path) -> None:
    for words in commands(page):
        if words[:2] == ["rlhf", "run"] and words[2] in recipes():
            load_recipe(words[2], [value for option, value in pairwise(words) if option == "--set"])


@by_page
def test_yaml_of_the_pages_validates(page: Path) -> None:
    """A whole recipe as a recipe; a part of one section by section."""
    for block in blocks(page, "yaml"):
        values: dict[str, Any] = yaml.safe_load(block)
        if "name" in values:
            Recipe.model_validate(values)
            continue
        for section, options in values.items():
            TypeAdapter(Recipe.model_fields[section].annotation).validate_python(options)


def test_the_checks_of_commands_have_teeth() -> None:
    for wrong in (["rlhf", "run"], ["rlhf", "run", "town", "--sett", "a=1"], ["rlhf", "label", "opened", "town"]):
        with pytest.raises(UsageError):
            check_command(wrong)


def test_the_refusal_on_the_page_is_the_one_that_is_printed() -> None:
    shown = next(block for block in blocks(ROOT / "docs" / "recipes.md", "text") if block.startswith("$ rlhf run"))
    words = shlex.split(shown.splitlines()[0])
    with pytest.raises(ConfigError) as error:
        load_recipe(words[3], words[5:])
    assert f"rlhf: {error.value}" == "\n".join(shown.splitlines()[1:])


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.stem)
def test_links_of_the_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    """Links between the pages of the site are checked by `make docs`."""
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_tree_on_the_page_on_architecture_has_every_folder() -> None:
    tree = blocks(ROOT / "docs" / "architecture.md", "text")[0]
    shown: set[str] = set()
    package = ""
    for indent, name in re.findall(r"^( *)([\w.]+/)", tree, flags=re.MULTILINE):
        package = package if indent else name
        shown.add(package + name if indent else name)
    folders = {
        f"{path.relative_to(ROOT)}/"
        for top in PACKAGES
        for path in [ROOT / top, *sorted((ROOT / top).iterdir())]
        if path.is_dir() and path.name != "__pycache__"
    }
    assert shown >= folders
    assert all((ROOT / folder).is_dir() for folder in shown)


def test_the_readme_is_short_and_its_examples_are_those_of_the_site() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    assert blocks(README, "python")[0] in blocks(ROOT / "docs" / "tutorial.md", "python")


def test_the_reference_of_options_is_made_from_the_schema() -> None:
    made = "\n".join(runpy.run_path(str(ROOT / "docs" / "hooks.py"))["option_tables"](Recipe))
    assert "## labeling.quality.screening" in made
    assert '| `kl_estimator` | `"k1" or "k3"` | `"k1"` |' in made
    assert "| `kl_target` | `float or null` | `null` | target KL in nats per response," in made
    assert "| `name` | `str` | `required` |" in made


def test_the_page_has_every_option_once_with_its_default() -> None:
    documented = [(name, ast.literal_eval(default)) for name, default in OPTIONS]
    options = {name: field.default for name, field in PPOConfig.model_fields.items()}
    assert dict(documented) == options | {"rollout": {}} and options["rollout"] == RolloutConfig()
    assert len(documented) == len(options)


def test_the_page_of_engines_has_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", (ROOT / "docs" / "rollout.md").read_text(encoding="utf-8"), re.M)
    documented = {name: yaml.safe_load(default) for name, default in rows if name in RolloutConfig.model_fields}
    assert documented == {name: field.default for name, field in RolloutConfig.model_fields.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a random policy and its tokenizer."""
    folder = tmp_path_factory.mktemp("example")
    world.policy(max_position_embeddings=128).save_pretrained(folder / "model")
    world.tokenizer().save_pretrained(folder / "model")
    return folder


def replaced(code: str, *changes: tuple[str, str]) -> str:
    """The code of an example with a real path, and fewer steps."""
    for old, new in changes:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


@pytest.fixture(scope="module")
def example(model: Path) -> tuple[Path, str]:
    """The first example of the page on PPO, on a random model and for two steps: its folder and what it printed."""
    code = replaced(
        blocks(ROOT / "docs" / "ppo.md", "python")[0], ('"path or hub id"', '"model"'), ("steps=20", "steps=2")
    )
    (model / "first.py").write_text(code, encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "first.py"], cwd=model, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return model, done.stdout


@pytest.mark.slow
def test_the_first_example_runs_and_is_ten_lines(example: tuple[Path, str]) -> None:
    folder, printed = example
    code = blocks(ROOT / "docs" / "ppo.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert printed.startswith("run/model ")
    assert (folder / "run" / "model" / "model.safetensors").exists()


def test_the_page_explains_every_value_that_is_logged(example: tuple[Path, str]) -> None:
    folder, _ = example
    last = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    names = {name for name in json.loads(last)["values"] if not name.startswith("reward/")}
    assert len(names) > 20
    assert not [name for name in names if f"`{name}`" not in PPO]


def test_examples_of_the_tutorial_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(model / "model")
    for code in blocks(ROOT / "docs" / "tutorial.md", "python"):
        code = code.replace("path/to/model", path).replace("path/to/checkpoint", path).replace("steps=20", "steps=2")
        exec(compile(code, "tutorial", "exec"), {})
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


EXCERPT = re.compile(r"# ([\w/]+\.py)\n")


def examples(page: Path) -> list[str]:
    """The Python of a page that is not an excerpt of a file."""
    return [code for code in blocks(page, "python") if not EXCERPT.match(code)]


def test_excerpts_on_the_pages_are_what_the_files_say() -> None:
    for page in PAGES:
        for code in blocks(page, "python"):
            if match := EXCERPT.match(code):
                source = (ROOT / match[1]).read_text(encoding="utf-8")
                assert code[match.end() :] in source, f"{page.name}: {code}"


def test_examples_of_the_page_on_extending_run() -> None:
    for code in examples(ROOT / "docs" / "extending.md"):
        exec(compile(code, "extending", "exec"), {})


def test_names_that_the_pages_import_exist() -> None:
    for page in [*PAGES, *(ROOT / "docs" / "reference").glob("*.md")]:
        for code in examples(page):
            imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(body=imports, type_ignores=[]), page.name, "exec"), {})


def test_the_page_on_labelling_has_the_limits_of_screening_with_their_defaults() -> None:
    documented = {name: float(value) for name, value in re.findall(r"`(\w+)` \(([\d.]+)\)", LABELING)}
    documented["significance"] = float(re.search(r"`significance` \(([\d.]+)\)", LABELING)[1])  # type: ignore[index]
    fields = {**Screening.model_fields, **QualityOptions.model_fields}
    assert documented == {name: fields[name].default for name in documented}
    limits = {name for name in Screening.model_fields if name.startswith(("minimum", "maximum", "signif"))}
    assert limits | {"dispute_ranking", "dispute_steps"} == set(documented)


def test_the_files_of_the_page_on_labelling_are_written() -> None:
    written = Path(stage.__file__).read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.jsonl?)`", LABELING.partition("## Output of the stage")[2].partition("## Agr")[0]):
        assert f'"{name}"' in written, name
