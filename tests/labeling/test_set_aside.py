"""Annotations that are set aside before they are parsed, and whose judgement an annotation of a server is."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.authors import doubt, with_author
from labeling.errors import UnreadableAnswer
from labeling.judgements.parse import parse
from labeling.server import transport
from labeling.set_aside import DEEPEST, SET_ASIDE, bounded, refusal, unread
from labeling.store.store import Store
from tests.labeling.judgements.test_parse import PAIRWISE, annotation, exported, preference
from tests.labeling.store.test_store import PROJECT, reading, row, said
from tests.labeling.test_authors import version


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x" * 1_000_001, "longer than 1,000,000 characters"),
        (["x"] * 400_000, "longer than 1,000,000 characters"),
        ({"x" * 1_000_001: 1}, "longer than 1,000,000 characters"),
        (nested(DEEPEST + 1), "nested deeper than 50 levels"),
        (nested(100_000), "nested deeper than 50 levels"),
        ([10**400], "an integer of more than 64 bits"),
        ([-(2**70)], "an integer of more than 64 bits"),
        ([float("nan")], "a number that is not finite: nan"),
        ([float("-inf")], "a number that is not finite: -inf"),
        ([{"text": "\ud800 \x00", "numbers": [1, -2.5, 2**63 - 1, True, None]}], ""),
        (nested(DEEPEST), ""),
    ],
)
def test_what_the_store_does_not_take(value: Any, expected: str) -> None:
    assert refusal(value) == expected


@given(st.recursive(st.none() | st.text() | st.floats() | st.integers(), lambda inner: st.lists(inner), max_leaves=20))
def test_a_stand_in_is_small_and_says_why(value: Any) -> None:
    kept = bounded(said(1, value))
    assert kept == said(1, value) or (kept[SET_ASIDE] and kept["result"] is None and kept["id"] == 1) or value != value


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([version(5, 5, "a")], ""),
        ([version(5, 6, "a")], "in the name of somebody else: account 6"),
        ([version(5, None, "a")], "in the name of account 5, but imported"),
        ([version(5, 6, "a"), version(5, 6, "b")], "in the name of somebody else"),  # changed by the same person
        ([version(5, 6, "a"), version(5, 5, "a")], ""),  # account 5 pressed Update
        ([version(5, 5, "a"), version(5, 6, "b")], ""),  # an edit, the judgement of 6
        ([version(5, 5, "a"), version(5, None, "b")], "in the name of account 5"),
        ([version(5, 5, "a"), version(5, None, "a")], ""),  # who starred it was deleted
        ([version(5, 5, "a"), version(5, 6, "a", ground_truth=True)], ""),
        ([version(None, 6, "a")], ""),
    ],
)
def test_who_can_be_believed(versions: list[Any], expected: str) -> None:
    assert doubt(versions).startswith(expected) and bool(doubt(versions)) == bool(expected)


def test_accounts_that_nobody_named_are_set_aside_by_name() -> None:
    raw = version(7, 7, "a", created_username="Sock sock@puppet.org, 7")
    assert SET_ASIDE not in with_author([raw], {7})
    assert "account 7 (Sock sock@puppet.org) is no annotator" in with_author([raw], {5})[SET_ASIDE]


def test_what_was_read_counts_when_a_later_version_cannot_be_read() -> None:
    store, first = Store(), said(1, [preference("a_1")], updated_by=5)
    store.record(PROJECT, [row(1, first)], reading())
    store.record(PROJECT, [row(1, unread(1, 1, first["updated_at"]), unread(2, 1, first["updated_at"]))], reading())
    kept, new = store.current(PROJECT.project)[0]["annotations"]
    assert kept["result"] == first["result"] and SET_ASIDE in new
    assert store.counts(PROJECT.project) == (1, 1)  # the other one is to be read again
    later = said(2, [preference("b_1")], updated_by=5)
    assert store.record(PROJECT, [row(1, first, later)], reading()).changed == 1
    assert [SET_ASIDE in raw for raw in store.current(PROJECT.project)[0]["annotations"]] == [False, False]


def test_a_deep_annotation_in_an_export_stops_nothing() -> None:
    deep = annotation([{"x": nested(900)}], 2)
    parsed = parse(exported(PAIRWISE, annotation([preference("a_1")], 1), deep), [PAIRWISE], 2, "p")
    assert len(parsed.judgements) == 1
    assert [(r.line, r.reason) for r in parsed.quarantined] == [(2, "nested deeper than 50 levels")]


def test_responses_are_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LARGEST_ANSWER", 1000)

    def endless() -> Any:
        while True:
            yield b"x" * 600

    inner = httpx.MockTransport(lambda _: httpx.Response(200, content=endless()))
    bounded_transport = transport.RetryingTransport("http://here", inner, 1, 0.0)
    with pytest.raises(UnreadableAnswer, match="more than 1,000 bytes"):
        bounded_transport.handle_request(httpx.Request("GET", "http://here/api"))
