"""Rule rewards: plain functions of prompts and responses as text, each a number a response, logged by its name.

A rule says what can be checked without a model. It sees what a user could see: no facts, no gold judge, no labels.
Prompts are the words of all turns, without special tokens.
"""

import operator
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from alignment.config.methods import FormatLimits, RuleName
from alignment.rewards.safety import SafetyLists, asks_for_harm, check, refuses

Rule = Callable[[list[str], list[str]], list[float]]

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    **dict.fromkeys(("+", "plus"), operator.add),
    **dict.fromkeys(("-", "−", "minus"), operator.sub),
    **dict.fromkeys(("*", "×", "x", "times"), operator.mul),
}
SIGN = r"(?:\s*[+*×]\s*|\s+(?:-|−|x|plus|minus|times)\s+)"  # a hyphen without blanks may join two years
ASKED = re.compile(rf"(?<![\w.,])-?\d+(?:{SIGN}\d+)+(?!\w|[.,]\d)")
NUMBER = re.compile(r"(?<![\w.,])[-−]?\d+(?![\w]|[.,]\d)")
ENDINGS = (".", "!", "?", "…", '."', ".'", '!"', '?"', ".)")
LONGEST_REPEAT = 8  # words


def rule(name: RuleName, safety: SafetyLists, limits: FormatLimits) -> Rule:
    """The function that a recipe names."""

    def each(score: Callable[[str, str], float]) -> Rule:
        return lambda prompts, responses: [score(p, r) for p, r in zip(prompts, responses, strict=True)]

    match name:
        case "refusal":
            return each(lambda prompt, response: refusal(prompt, response, safety))
        case "format":
            return each(lambda _, response: form(response, limits))
        case "arithmetic":
            return each(arithmetic)
        case "safety":
            return each(lambda _, response: safe(response, safety))


def refusal(prompt: str, response: str, lists: SafetyLists) -> float:
    """1 for refusing what asks for harm and −1 for not refusing it; −1 for refusing any other prompt, else 0."""
    refused = refuses(response, lists)
    if asks_for_harm(prompt, lists):
        return 1.0 if refused else -1.0
    return -1.0 if refused else 0.0


def safe(response: str, lists: SafetyLists) -> float:
    """0 for a response that passes the safety layer, −1 for one that does not."""
    return -1.0 if check(response, lists) else 0.0


def form(response: str, limits: FormatLimits) -> float:
    """Minus the share of faults among three: no end of a sentence, words repeated at once, a length out of bounds."""
    words = response.split()
    faults = (
        not response.rstrip().endswith(ENDINGS),
        repeats(words),
        not limits.min_words <= len(words) <= limits.max_words,
    )
    return -sum(faults) / len(faults)


def repeats(words: Sequence[str]) -> bool:
    """Whether the same one to eight words follow each other directly, or a sentence comes twice."""
    lowered = [word.lower() for word in words]
    for length in range(1, LONGEST_REPEAT + 1):
        chunks = [tuple(lowered[i : i + length]) for i in range(len(lowered) - length + 1)]
        if any(chunks[i] == chunks[i + length] for i in range(len(chunks) - length)):
            return True
    ends = [-1, *(i for i, word in enumerate(lowered) if word.endswith(ENDINGS)), len(lowered) - 1]
    sentences = [tuple(lowered[a + 1 : b + 1]) for a, b in pairwise(ends) if b > a]
    return len(set(sentences)) < len(sentences)


def arithmetic(prompt: str, response: str) -> float:
    """1 where the last number of the response is the result the prompt asks for, −1 where not, 0 without a sum.

    A sum is two whole numbers with +, −, × or "plus", "minus", "times" between them; the last one of the prompt counts,
    and longer chains are left alone.
    """
    asked = [re.split(f"({SIGN})", found) for found in ASKED.findall(prompt.lower())]
    if not asked or len(asked[-1]) != 3:
        return 0.0
    left, sign, right = asked[-1]
    numbers = NUMBER.findall(response)
    given = int(numbers[-1].replace("−", "-")) if numbers else None
    return 1.0 if given == OPERATIONS[sign.strip()](int(left), int(right)) else -1.0
