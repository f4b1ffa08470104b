"""Rule `format`: complete sentences, no repetition, a length within limits."""

from collections.abc import Sequence
from itertools import pairwise

from pydantic import Field, model_validator

from alignment.config.base import Config, Count, Natural

ENDINGS = (".", "!", "?", "…", '."', ".'", '!"', '?"', ".)")
LONGEST_REPEAT = 8  # words


class FormatLimits(Config):
    """Lengths that the rule `format` accepts."""

    min_words: Natural = Field(1, description="fewest words of a valid response")
    max_words: Count = Field(60, description="most words of a valid response")

    @model_validator(mode="after")
    def _ordered(self) -> "FormatLimits":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is more than max_words {self.max_words}: lower it")
        return self


def form(response: str, limits: FormatLimits) -> float:
    """−faults / 3, of three: an incomplete last sentence, a direct repetition, a length outside the limits."""
    words = response.split()
    faults = (
        not response.rstrip().endswith(ENDINGS),
        repeats(words),
        not limits.min_words <= len(words) <= limits.max_words,
    )
    return -sum(faults) / len(faults)


def repeats(words: Sequence[str]) -> bool:
    """Whether a sequence of up to eight words is repeated directly, or a sentence occurs twice."""
    lowered = [word.lower() for word in words]
    for length in range(1, LONGEST_REPEAT + 1):
        chunks = [tuple(lowered[i : i + length]) for i in range(len(lowered) - length + 1)]
        if any(chunks[i] == chunks[i + length] for i in range(len(chunks) - length)):
            return True
    ends = [-1, *(i for i, word in enumerate(lowered) if word.endswith(ENDINGS)), len(lowered) - 1]
    sentences = [tuple(lowered[a + 1 : b + 1]) for a, b in pairwise(ends) if b > a]
    return len(set(sentences)) < len(sentences)
