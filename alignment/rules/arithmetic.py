"""Rule `arithmetic`: checks the result of the sum in the prompt."""

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
    """1 if the last number of the response is the result of the prompt's sum, −1 if not, 0 without a sum.

    A sum is two whole numbers with +, −, × or "plus", "minus", "times" between them; the last sum of the prompt counts,
    and longer chains are ignored.
    """
    sums = [re.split(f"({SIGN})", expression) for expression in ASKED.findall(prompt.lower())]
    if not sums or len(sums[-1]) != 3:
        return 0.0
    left, sign, right = sums[-1]
    numbers = NUMBER.findall(response)
    answer = int(numbers[-1].replace("−", "-")) if numbers else None
    return 1.0 if answer == OPERATIONS[sign.strip()](int(left), int(right)) else -1.0
