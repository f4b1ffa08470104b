"""Label configs as sent to Label Studio: a project is identified by the hash of its label config."""

import hashlib

import pytest

from labeling.config import Kind
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen

# A changed hash opens new projects for everybody who labels: change one only together with the screen that it is of.
SHA256 = {
    "ranking": "2c5cff2febb85a1438ee0f20fa66ef4603ee4e8c5c1af287fec31bc55e6ee745",
    "pairwise": "88abf590f69cd3d579aa8b0ddd368971e5d5914a5daf36e0d4fc70ee48f43475",
    "demonstration": "243081fd4cf8b4bc988c658bbe9680f516759edec7229e8b1f18f33eda9d1906",
    "guidelines": "775061953193fbbfd250346ff86e521fb5c0130fea601c7fa72bd8e06ea9c972",
}


@pytest.mark.parametrize("kind", ["ranking", "pairwise", "demonstration"])
def test_a_label_config_is_byte_for_byte_the_one_that_projects_were_opened_with(kind: Kind) -> None:
    assert hashlib.sha256(screen(kind).label_config.encode()).hexdigest() == SHA256[kind]


def test_the_guidelines_are_the_ones_that_annotators_were_instructed_with() -> None:
    assert hashlib.sha256(shipped("en").model_dump_json().encode()).hexdigest() == SHA256["guidelines"]
