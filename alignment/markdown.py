"""Text of models and people inside Markdown: it stays text."""

from collections.abc import Sequence

ENTITIES = str.maketrans({mark: f"&#{ord(mark)};" for mark in "&<>|[]`*_~\\"})


def plain(text: str, longest: int = 0) -> str:
    """Text on one line that cannot become HTML, a link, an image, code, emphasis or a cell; cut to `longest`."""
    line = " ".join(text.split())
    if longest and len(line) > longest:
        line = f"{line[: longest - 1]}…"
    return line.translate(ENTITIES).replace("://", "&#58;//")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are Markdown."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
