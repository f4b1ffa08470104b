"""Text by models and people stays text wherever it is shown: no HTML, links, images, table cells or formulas."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from alignment.markdown import plain
from flows.annotation.publish import _text
from flows.sweeps.summary import inline
from labeling.reports.card import _table
from labeling.reports.figures import answers_chart
from labeling.reports.page import svg_figure

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![](https://evil.example/track.png)",
    "`</td></tr>`",
    "a | b\n| c |",
    "$\\foo{$",
    "]]> & \"'",
    "<!-- x",
    "[ref]: https://evil.example\n[ref]",
    "<https://evil.example>",
    "\u202egnp.exe",
    "**bold** _it_ ~~x~~",
)


class Tags(HTMLParser):
    """The tags of a page, and what they lead to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.leads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.leads += [str(value) for name, value in attrs if name in ("href", "src") or name.startswith("on")]


def rendered(cells: list[str]) -> Tags:
    """A table with these cells as a page would show it that renders HTML in Markdown too."""
    lines = [f"| {' | '.join(row)} |" for row in (["h"] * len(cells), ["---"] * len(cells), cells)]
    return Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render("\n".join(lines)))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("write", [plain, _text, inline, lambda text: _table(["h"], [[text]])[-1].strip("| ")])
def test_a_cell_of_a_table_stays_text(text: str, write: object) -> None:
    shown = rendered([write(text), "next"])  # type: ignore[operator]
    assert not shown.leads and shown.seen <= {"table", "thead", "tbody", "tr", "th", "td", "br", "strong", "em", "code"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_in_a_picture_of_a_page_is_text(text: str) -> None:
    from labeling.quality.results import AnnotatorQuality, Rate

    fields = AnnotatorQuality.model_fields
    blank = {name: None for name in fields if not fields[name].is_required()}
    person = AnnotatorQuality.model_construct(
        **{
            **blank,
            "annotator_id": "1",
            "judgements": 3,
            "agreement": Rate(share=0.5, low=0.2, high=0.8, count=3),
            "gold": Rate(share=None, low=None, high=None, count=0),
            "concerns": (),
            "reliability": None,
            "median_lead_time_seconds": None,
        }
    )
    page = svg_figure(answers_chart([person], {"1": text}), text)
    assert not Tags(page).seen & {"script", "img", "a", "iframe"}
    assert svg_figure(Figure(), text).count("<figure") == 1
