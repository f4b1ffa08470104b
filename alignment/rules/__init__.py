"""Rule rewards: functions of a prompt and a response as text that return a number, logged under their names.

A rule needs no model and sees only what a user sees: no facts, no gold judge, no labels. Prompts are the text of all
turns, without special tokens. A new rule is an entry in this table, from which recipes take the names.
"""

from collections.abc import Callable, Mapping

from alignment.rules.arithmetic import arithmetic
from alignment.rules.form import FormatLimits, form
from alignment.rules.safety import SafetyLists, refusal, safe

Rule = Callable[[str, str, SafetyLists, FormatLimits], float]

RULES: Mapping[str, Rule] = {
    "refusal": lambda prompt, response, safety, _: refusal(prompt, response, safety),
    "format": lambda _, response, __, limits: form(response, limits),
    "arithmetic": lambda prompt, response, _, __: arithmetic(prompt, response),
    "safety": lambda _, response, safety, __: safe(response, safety),
}
