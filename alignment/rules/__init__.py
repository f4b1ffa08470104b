"""Rule rewards: functions of a prompt and a response as text, each with a number as its result, logged by their names.

A rule checks what needs no model. It sees what a user could see: no facts, no gold judge, no labels. Prompts are the
words of all turns, without special tokens. A new rule is an entry here: recipes take the names from this table.
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
