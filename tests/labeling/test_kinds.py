"""Whatever is looked up by the kind of a task covers every kind: a new one fails here until each place knows it."""

from typing import get_args

import pytest

from labeling.config import Kind, LabelingConfig
from labeling.judgements.controls import known_controls, shapes
from labeling.judgements.parse import PARSERS
from labeling.reports.effort import ASSUMED
from labeling.screens.render import screen
from tests.labeling.screens.test_rendered import SHA256

KINDS = get_args(Kind)


def test_mappings_over_kinds_have_every_kind() -> None:
    for mapping in (PARSERS, ASSUMED, LabelingConfig().overlaps):
        assert {*mapping} == {*KINDS}
    assert {*KINDS} <= {*SHA256}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_screen_and_a_number_of_prompts(kind: Kind) -> None:
    assert screen(kind).label_config and shapes(kind, known_controls())
    assert LabelingConfig().with_prompts({kind: 7}) != LabelingConfig()
