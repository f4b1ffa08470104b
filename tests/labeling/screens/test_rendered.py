"""Label configs as sent to Label Studio: a project is identified by the hash of its label config."""

import hashlib

import pytest

from labeling.config import Kind
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen

# A changed hash opens new projects for everybody who labels: change one only together with the screen that it is of.
SHA256 = {
    "ranking": "06680fa9252c99268fca7c31e9439f45673cc74ed156767b9d58ca8df8baa94d",
    "pairwise": "f11da58e2d9f4964ca80a0d5180ddbdbf786bf70e11b9b69e4204da64156d784",
    "demonstration": "2c5b2d35a30c761e76dd44561c0b567de8ec7214e853716d0da505dca7c7f845",
    "guidelines": "775061953193fbbfd250346ff86e521fb5c0130fea601c7fa72bd8e06ea9c972",
}


@pytest.mark.parametrize("kind", ["ranking", "pairwise", "demonstration"])
def test_a_label_config_is_byte_for_byte_the_one_that_projects_were_opened_with(kind: Kind) -> None:
    assert hashlib.sha256(screen(kind).label_config.encode()).hexdigest() == SHA256[kind]


def test_the_guidelines_are_the_ones_that_annotators_were_instructed_with() -> None:
    assert hashlib.sha256(shipped("en").model_dump_json().encode()).hexdigest() == SHA256["guidelines"]
