"""Recipe validation: messages name the key, the value and what is allowed."""

from pathlib import Path

import pytest
import yaml

from alignment.errors import ConfigError
from flows.recipe import schema as recipes
from flows.recipe.schema import Recipe, load_recipe

BASE = {"description": "a town", "town": {}, "labeling": {}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def test_a_file_gives_a_recipe_named_after_it(file: Path) -> None:
    recipe = load_recipe(str(file))
    assert recipe.name == "mine"
    assert recipe == Recipe(name="mine", description="a town", town={}, labeling={})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", recipes.recipes())
def test_shipped_recipes_are_valid_and_have_a_description(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_overrides_are_yaml_and_open_sections(file: Path) -> None:
    told = ["ppo.kl_coef=0.25", "labeling.rankings.prompts=7", "ppo.score_clip=null"]
    recipe = load_recipe(str(file), [*told, "sft.learning_rate=1e-4", "corpus.sources=[{path: a.txt}]"])
    assert recipe.ppo.kl_coef == 0.25
    assert recipe.ppo.score_clip is None
    assert recipe.sft.learning_rate == 1e-4
    assert recipe.labeling is not None
    assert recipe.labeling.rankings.prompts == 7
    assert recipe.corpus.sources[0].path == "a.txt"


def test_list_items_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**BASE, "corpus": {"sources": [{"path": "a.txt"}, {"path": "b.txt"}]}}))
    assert load_recipe(str(path), ["corpus.sources.1.path=c.txt"]).corpus.sources[1].path == "c.txt"
    with pytest.raises(ConfigError, match="number from 0 to 1"):
        load_recipe(str(path), ["corpus.sources.2.path=c.txt"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.kl_coeff=0.1", ["ppo.kl_coeff: unknown key", "Did you mean ppo.kl_coef?", "clip_range"]),
        ("labeling.crew.annotater=3", ["Did you mean labeling.crew.annotators?"]),
        ("zebra=1", ["zebra: unknown key", "a recipe has:", "release_gate"]),
        ("ppo.kl_coef=much", ["ppo.kl_coef: 'much' is not allowed", "a number at least 0"]),
        ("ppo.kl_coef=-1", ["ppo.kl_coef: -1 is not allowed", "at least 0"]),
        ("ppo.clip_range=1", ["ppo.clip_range: 1 is not allowed", "above 0 and below 1"]),
        ("ppo.score_clip=x", ["ppo.score_clip: 'x'", "a number above 0 or null"]),
        ("ppo.kl_estimator=k2", ["'k2' is not allowed", "one of 'k1', 'k3'"]),
        ("seed=1.5", ["seed: 1.5 is not allowed", "a whole number at least 0"]),
        ("sft=7", ["sft: 7 is not allowed", "a mapping with batch_size"]),
        ("ppo.minibatch_size=33", ["ppo: batch_size 128 is not a multiple of minibatch_size 33"]),
        ("pretrain.model.heads=3", ["pretrain.model: hidden_size 128"]),
        (
            "corpus.sources=[{path: a, format: b}]",
            ["corpus.sources.0.format: unknown key", "path, revision, split, text_field"],
        ),
        ("comparisons.sources=[{path: a, format: b}]", ["comparisons.sources.0.format: 'b'", "'hh'"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(file: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file), [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["labeling=null"], "there is no source of comparisons"),
        (["comparisons.sources=[{path: a.jsonl}]"], "both set"),
        (["town=null"], "corpus.sources.0.path is town://corpus.jsonl, but there is no town"),
        (["town=null"], "set labeling.annotators: people"),
        (["labeling.quality.gold.share=0.1", "labeling.annotators=people", "town=null"], "set labeling.quality.gold"),
        (["labeling.quality.gold.share=0.1", "sampling.prompts=180"], "180 judged prompts and 18 for gold tasks"),
        (["comparisons.aggregate=soft", "align.method=dpo"], "align.method dpo weights all comparisons equally"),
        (["comparisons.weights=reliability", "align.method=dpo"], "align.method dpo weights all comparisons equally"),
        (["sampling.prompts=10"], "sampling.prompts is 10, but labeling asks for 180"),
        (["sft.max_length_tokens=4096"], "sft.max_length_tokens 4096 is more than pretrain.model.context_length 128"),
        (["reward.max_length_tokens=129"], "reward.max_length_tokens 129"),
        (["ppo.max_new_tokens=128"], "ppo.max_new_tokens 128 leaves no room for a prompt"),
    ],
)
def test_impossible_combinations_are_refused(file: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match="cannot be run") as caught:
        load_recipe(str(file), overrides)
    assert words in str(caught.value)


def test_lengths_of_an_imported_checkpoint_are_not_guessed(file: Path) -> None:
    told = ["pretrain.checkpoint=some/model", "pretrain.epochs=0", "sft.max_length_tokens=4096"]
    assert load_recipe(str(file), told).sft.max_length_tokens == 4096


@pytest.mark.parametrize("override", ["ppo", "=1", "ppo..x=1", ".a=1"])
def test_a_broken_override_shows_how_to_write_one(file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set ppo\.kl_coef"):
        load_recipe(str(file), [override])


def test_an_override_below_a_plain_value_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="no options below"):
        load_recipe(str(file), ["description.x=1"])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words", ""])
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_recipe(str(path))


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first.yaml").write_text("description: one")
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    with pytest.raises(ConfigError, match="one of first"):
        load_recipe("second")
    assert recipes.recipes() == {"first": "one"}


def test_every_recipe_of_the_package_is_valid() -> None:
    for name in recipes.recipes():
        values = yaml.safe_load((recipes.RECIPES / f"{name}.yaml").read_text())
        assert values.get("description"), f"{name} has no description"
        load_recipe(name)


@pytest.mark.parametrize(
    ("section", "options", "words"),
    [
        ("comparisons", "columns: {prompt: q, a: l, b: r}", "`columns` holds no comparisons; they need columns.chosen"),
        ("comparisons", "columns: {prompt: q}", "`columns` holds no comparisons"),
        ("comparisons", "format: dolly", "format 'dolly' holds no comparisons"),
        ("comparisons", "format: template, prompt: '{q}'", "format 'template' holds no comparisons"),
        ("demonstrations", "columns: {prompt: q}", "`columns` holds no demonstrations; they need columns.messages"),
        ("demonstrations", "format: hh", "format 'hh' holds no demonstrations"),
        ("demonstrations", "format: scores", "format 'scores' holds no demonstrations"),
        ("demonstrations", "format: template, prompt: '{q}'", "needs `completion` too, as in completion: '{answer}'"),
        ("prompts", "columns: {completion: a}", "`columns` holds no prompts; they need columns.prompt or messages"),
    ],
)
def test_a_source_that_cannot_hold_what_its_section_needs(file: Path, section: str, options: str, words: str) -> None:
    overrides = [f"{section}.sources=[{{path: a.jsonl, {options}}}]", "labeling=null"]
    if section != "comparisons":
        overrides.append("comparisons.sources=[{path: b.jsonl}]")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file), overrides)
    assert f"{section}.sources.0: a.jsonl: " in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        "columns: {prompt: q, a: l, b: r, winner: w}",
        "columns: {a: l, b: r, strength: s}",
        "columns: {prompt: q, responses: r, score: s}",
        "format: pku, columns: {winner: safer_response_id}",
        "format: scores",
        "format: oasst",
        "format: records",
    ],
)
def test_a_source_that_can_hold_comparisons(file: Path, options: str) -> None:
    load_recipe(str(file), [f"comparisons.sources=[{{path: a.jsonl, {options}}}]", "labeling=null"])
