"""Whatever is looked up by the kind of a task covers every kind: a new one fails here until each place knows it."""

from typing import get_args

import pytest

from labeling.config import Kind, LabelingConfig
from labeling.judgements.parse import PARSERS, SHAPES
from labeling.reports.effort import ASSUMED
from labeling.screens.render import screen
from tests.labeling.screens.test_rendered import SHA256

KINDS = get_args(Kind)


def test_mappings_over_kinds_have_every_kind() -> None:
    for mapping in (SHAPES, PARSERS, ASSUMED, LabelingConfig().overlaps):
        assert {*mapping} == {*KINDS}
    assert {*KINDS} <= {*SHA256}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_screen_and_a_number_of_prompts(kind: Kind) -> None:
    assert screen(kind)
    assert LabelingConfig().with_prompts({kind: 7}) != LabelingConfig()
