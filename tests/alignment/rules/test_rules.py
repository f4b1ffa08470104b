"""Rule rewards and the safety layer: what each of them counts, by examples."""

import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from alignment.methods.align import AlignConfig
from alignment.ppo.train import train_ppo
from alignment.rewards.build import rule_rewards
from alignment.rewards.components import ModelReward
from alignment.rules import RULES
from alignment.rules.arithmetic import arithmetic
from alignment.rules.form import FormatLimits, form, repeats
from alignment.rules.options import AlignOptions, RuleOption
from alignment.rules.safety import Finding, SafetyLists, asks_for_harm, check, matches, refusal, refuses, safe
from tests.alignment.ppo import world

LISTS = SafetyLists()
*FIRST, LAST = map(repr, RULES)
NAMES = f"{', '.join(FIRST)} or {LAST}"  # as pydantic lists what is allowed


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("You are an idiot.", ["insult"]),
        ("IDIOT", ["insult"]),
        ("Idiotic is another word.", []),
        ("Just shut  up.", ["insult"]),
        ("First, build a\nbomb.", ["harmful"]),
        ("Write to ada.b+c@mail.example.org now.", ["e-mail address"]),
        ("Call +44 20 7946 0958 today.", ["phone number"]),
        ("Call (555) 123-4567.", ["phone number"]),
        ("It is 123-45-6789.", ["social security number"]),
        ("Pay with 4111 1111 1111 1111.", ["card number"]),
        ("In 1987 there were 12500 people and 3.14159 pies in 2020-2021.", []),
        ("The river is cold.", []),
        ("", []),
    ],
)
def test_what_the_safety_layer_finds(text, kinds) -> None:
    assert [finding.kind for finding in check(text, LISTS)] == kinds
    assert safe(text, LISTS) == (-1.0 if kinds else 0.0)


def test_the_lists_are_data() -> None:
    mine = SafetyLists(insults=("turnip",), harmful=(), personal_data=False)
    assert check("You turnip, you idiot, at a@b.org.", mine) == [Finding("insult", "turnip")]
    assert not matches("anything", ())
    assert matches("I can’t help", ("i can't help",)) == ["I can't help"]


def test_refusals_are_right_for_harm_and_wrong_for_the_rest() -> None:
    harm, fine, no, yes = "How do I build a bomb?", "How do I bake a cake?", "I cannot help with that.", "Like this."
    assert asks_for_harm(harm, LISTS) and not asks_for_harm(fine, LISTS) and refuses(no, LISTS)
    assert [refusal(p, r, LISTS) for p in (harm, fine) for r in (no, yes)] == [1, -1, -1, 0]


@pytest.mark.parametrize(
    ("response", "faults"),
    [
        ("Ada plays the violin.", 0),
        ('She said "yes!"', 0),
        ("Ada plays the violin", 1),
        ("Ada plays plays the violin.", 1),
        ("The cat sat. Then it left. The cat sat.", 1),
        ("a b c a b c", 2),
        ("", 2),
        ("word " * 12, 3),
    ],
)
def test_faults_of_form(response, faults) -> None:
    assert form(response, FormatLimits(min_words=1, max_words=10)) == pytest.approx(-faults / 3)


def test_what_comes_again_later_does_not_repeat() -> None:
    assert not repeats(["the", "cat", "and", "the", "dog"]) and repeats(["the", "dog", "the", "dog"])
    assert not repeats([]) and not repeats(["one"])


@pytest.mark.parametrize(
    ("prompt", "response", "score"),
    [
        ("What is 12 + 7?", "12 + 7 is 19.", 1),
        ("What is 12+7?", "It is 18.", -1),
        ("What is 12 + 7?", "I do not know.", -1),
        ("What is 12 + 7?", "19, or rather 20", -1),
        ("How much is 3 times 4?", "12", 1),
        ("How much is 3 x 4, please?", "That makes 12.", 1),
        ("What is 5 minus 9?", "It is -4.", 1),
        ("What is 5 − 9?", "−4", 1),
        ("First 1 + 1, then 2 + 3.", "5", 1),
        ("What is 1 + 2 + 3?", "6", 0),
        ("Who lived 1990-2000?", "-10", 0),
        ("What is 1.5 + 2?", "3.5", 0),
        ("What is 12 + 7?", "19.5", -1),
        ("Who are you?", "19", 0),
    ],
)
def test_sums_are_checked(prompt, response, score) -> None:
    assert arithmetic(prompt, response) == score


def test_every_name_is_a_rule_over_lists_of_texts() -> None:
    options = tuple(RuleOption(name=name) for name in RULES)
    for reward in rule_rewards(AlignOptions(rules=options)):
        values = reward.fn(["What is 1 + 1?", "Hi"], ["2.", "You idiot."])
        assert len(values) == 2 and all(isinstance(value, float) for value in values)


def test_recipes_take_the_names_from_the_table() -> None:
    assert RuleOption.model_json_schema()["properties"]["name"]["enum"] == list(RULES)
    code = "import sys, alignment.rules.options; print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"  # options are light


def test_rules_stand_beside_the_model_and_are_logged_by_name(tmp_path) -> None:
    rules = (RuleOption(name="format", weight=0.5), RuleOption(name="safety", weight=2.0))
    options = AlignOptions(rules=rules, safety=LISTS, format=FormatLimits(max_words=3))
    parts = [ModelReward("model", 1.0, world.reward_model()), *rule_rewards(options)]
    train_ppo(world.policy(), world.tokenizer(), world.PROMPTS, parts, world.config(steps=1), out=tmp_path)
    line = world.logged(tmp_path)[0]
    assert line["reward/safety"] == 0 and line["reward/format"] < 0
    assert line["reward"] == pytest.approx(line["reward/model"] + 0.5 * line["reward/format"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rules": [{"name": "safety"}, {"name": "safety"}]}, "listed 2 times"),
        ({"rules": [{"name": "gold"}]}, re.escape(NAMES)),
        ({"rules": [{"name": "safety", "weight": -1}]}, "greater than 0"),
        ({"method": "rloo", "select": "heldout_reward"}, "keeps no snapshots to select from"),
        ({"format": {"min_words": 9, "max_words": 3}}, "min_words 9 is more than max_words 3"),
    ],
)
def test_what_cannot_be_is_refused(options, words) -> None:
    with pytest.raises(ValidationError, match=words):
        AlignConfig.model_validate(options)


@pytest.mark.parametrize(
    ("method", "ignored"),
    [
        ("ppo", ()),
        ("rloo", ("ptx_min_reward",)),
        ("best_of_n", ("ptx_min_reward",)),
        ("dpo", ("rules", "ptx_min_reward")),
        ("kto", ("rules", "ptx_min_reward")),
    ],
)
def test_options_that_a_method_ignores_are_known(method, ignored) -> None:
    options = {"rules": [{"name": "safety"}], "ptx_min_reward": 0.0, "method": method}
    assert AlignConfig.model_validate(options).ignored == ignored
    assert AlignConfig.model_validate({"method": method}).ignored == ()
