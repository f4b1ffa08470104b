"""Rule `arithmetic`: the result of the sum that the prompt asks for."""

import operator
import re
from collections.abc import Callable

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    **dict.fromkeys(("+", "plus"), operator.add),
    **dict.fromkeys(("-", "−", "minus"), operator.sub),
    **dict.fromkeys(("*", "×", "x", "times"), operator.mul),
}
SIGN = r"(?:\s*[+*×]\s*|\s+(?:-|−|x|plus|minus|times)\s+)"  # a hyphen without blanks may join two years
ASKED = re.compile(rf"(?<![\w.,])-?\d+(?:{SIGN}\d+)+(?!\w|[.,]\d)")
NUMBER = re.compile(r"(?<![\w.,])[-−]?\d+(?![\w]|[.,]\d)")


def arithmetic(prompt: str, response: str) -> float:
    """1 where the last number of the response is the result the prompt asks for, −1 where not, 0 without a sum.

    A sum is two whole numbers with +, −, × or "plus", "minus", "times" between them; the last one of the prompt counts,
    and longer chains are left alone.
    """
    asked = [re.split(f"({SIGN})", expression) for expression in ASKED.findall(prompt.lower())]
    if not asked or len(asked[-1]) != 3:
        return 0.0
    left, sign, right = asked[-1]
    numbers = NUMBER.findall(response)
    answer = int(numbers[-1].replace("−", "-")) if numbers else None
    return 1.0 if answer == OPERATIONS[sign.strip()](int(left), int(right)) else -1.0
