"""Label configs as sent to Label Studio: a project is identified by the hash of its label config."""

import hashlib

import pytest

from labeling.config import Kind
from labeling.screens.render import guidelines, instruction, screen

# A changed hash opens new projects for everybody who labels: change one only together with the screen that it is of.
SHA256 = {
    "ranking": "dfdfb37cf4a3e219b28fc0b23a2149f4755e44f9779337cdb13e74e00105048f",
    "pairwise": "534843b32a0a59d41b5221ba9bbfc88279f84cd8de7883ae4dc3cb722eaeea9b",
    "demonstration": "aa3b2013d673f94a53f5f9395f6c635e8e1ffc8e734b2d06cbc4d2e08155282a",
    "guidelines": "61411c77d3afbbe88d2cef2e184eddee824d6cc3d62cbbb370f353f6eec592af",
    "instruction": "a4934c3c983e0da78ac87e37379bcbed6135d8848316be04bf3ab76ead83bb5d",
}


@pytest.mark.parametrize("kind", ["ranking", "pairwise", "demonstration"])
def test_a_label_config_is_byte_for_byte_the_one_that_projects_were_opened_with(kind: Kind) -> None:
    assert hashlib.sha256(screen(kind).encode()).hexdigest() == SHA256[kind]


def test_the_guidelines_are_the_ones_that_annotators_were_instructed_with() -> None:
    assert hashlib.sha256(guidelines().encode()).hexdigest() == SHA256["guidelines"]
    assert hashlib.sha256(instruction().encode()).hexdigest() == SHA256["instruction"]
