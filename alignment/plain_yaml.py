"""YAML with limits on size, depth and what its aliases expand to."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

LONGEST_CHARACTERS = 1_000_000
LONGEST_BYTES = 4 * LONGEST_CHARACTERS  # in UTF-8
MOST_WRITTEN, MOST_VALUES = 20_000, 100_000  # values in the text, and with all aliases written out
DEEPEST, MOST_DIGITS = 50, 300
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
SURROGATES = re.compile("[\ud800-\udfff]")


class _BoundedLoader(yaml.SafeLoader):
    """A loader that counts nodes and levels while it reads them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > MOST_WRITTEN:
            raise ValueError(f"it has more than {MOST_WRITTEN} values")
        if self._depth > DEEPEST:
            raise ValueError(_too_deep())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def plain_yaml(text: str) -> Any:
    """Parse YAML to plain values. Raises YAMLError, and ValueError for what is too long, too deep or cannot be kept.

    What aliases and merges (`<<`, which copies all keys of what it names) expand to is counted before any value is
    made.
    """
    if len(text) > LONGEST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, more than {LONGEST_CHARACTERS}")
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_expansion(node, {}, 0)
        values = loader.construct_document(node)
    except (AttributeError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"a value does not fit its tag: {error}") from error  # `!!timestamp x`, say
    for path, value in walk(values):
        if isinstance(value, str) and SURROGATES.search(value):
            raise ValueError(f"{path} holds a lone surrogate, half of a character")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which is not finite")
    return values


def _check_expansion(node: yaml.Node, sizes: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """The number of values in a node with all aliases and merges written out, and its levels.

    Raises ValueError beyond the limits. `sizes` has the nodes that were counted; a node inside itself has no end.
    """
    if id(node) in sizes:
        count, levels = sizes[id(node)]
    else:
        sizes[id(node)] = (1, DEEPEST + 1)  # until it is counted
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
            raise ValueError(f"the number {node.value[:20]}… has more than {MOST_DIGITS} digits")
        parts = [_check_expansion(item, sizes, depth + 1) for item in _inner(node)]
        count, levels = 1 + sum(size for size, _ in parts), 1 + max((deep for _, deep in parts), default=0)
        sizes[id(node)] = (count, levels)
    if depth + levels > DEEPEST + 1:
        raise ValueError(_too_deep())
    if count > MOST_VALUES:
        raise ValueError(f"it expands to more than {MOST_VALUES} values: check its aliases and merges")
    return count, levels


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _too_deep() -> str:
    return f"it is nested deeper than {DEEPEST} levels"


def walk(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value with the dotted path of its key."""
    if depth > DEEPEST:
        raise ValueError(_too_deep())
    yield path, value
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in inner:
        yield from walk(item, f"{path}.{name}" if path else str(name), depth + 1)
