"""The model card: what reviewers ask first, on the page of a version, whatever models and people wrote."""

from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mlflow import MlflowClient

from flows.releases.card import LONGEST, NOTES, fitting_card
from flows.releases.promote import roll_back
from flows.tracking.links import RunPages
from tests.flows.releases.world import BETTER, GOOD, HALF, finish
from tests.security.test_markup import Tags

NAME = "tiny-policy"


def card_of(number: str) -> str:
    return str(MlflowClient().get_model_version(NAME, number).description)


def test_a_card_says_which_is_best_and_why_what_it_cost_and_who_labelled(home: Path) -> None:
    manifest = finish(GOOD)
    finish(HALF, version=2)
    champion, candidate = card_of("1"), card_of("2")
    assert champion.startswith("Champion since ") and ": release tiny-0-00000001 passed its gate. Policy of" in champion
    assert candidate.startswith("Candidate, not champion: champion&#95;gate.min")
    assert "it beats tiny-policy/1 on 0.000 of 20 decided prompts" in candidate
    page = unescape(champion)
    for words in (
        "| min_win_rate | 0.6 | 0.800 | passed by 0.200 |",
        "beats SFT on 0.800 of 18 decided prompts (95 % interval 0.700 to 0.900; gold judge)",
        "- corpus: 4,775 from text.txt; CC0",
        "- labelled by people in Label Studio, 3 annotators, 60 annotations; guidelines ranking `a5d4105c`",
        "- intended use: a test",
        "- limits: not stated",
        '- load: `mlflow.pyfunc.load_model("models:/tiny-policy/1").predict({"prompt": […]})`',
        "- serve: `mlflow models serve -m models:/tiny-policy/1 --env-manager local`",
        "1.5 minutes of computation on cpu float32; 1.5 hours of judging; code 0123456789ab",
        f"runs/{manifest['mlflow_run_id']}/artifacts?workflowType=machine_learning",
        f"(get-artifact?path=report/gold_curve/gold_curve.png&run_uuid={manifest['mlflow_run_id']})",
    ):
        assert words in page, words
    assert page.count("- **Question") == 5 and page.count("  - policy (") == 5 and page.count("  - sft (") == 5
    tags = MlflowClient().get_model_version(NAME, "1").tags
    shown = {name: value for name, value in tags.items() if not name.startswith("rlhf.")}
    assert shown == {
        "score": "0.500",
        "wins": "0.80 (0.70 to 0.90)",
        "gate": "passed",
        "kl": "1.25",
        "loss": "2.000",
        "seed": "0",
        "release": "tiny-0-00000001",
    }
    assert MlflowClient().get_run(manifest["mlflow_run_id"]).info.run_name == "tiny-0-00000001"


def test_text_of_models_and_people_stays_text_in_a_card(home: Path) -> None:
    finish(GOOD)
    seen = Tags(MarkdownIt("commonmark", {"html": True, "linkify": True}).enable("table").render(card_of("1")))
    assert "script" not in seen.seen and not [url for url in seen.leads if "evil" in url or "javascript" in url]


def test_a_card_follows_what_happens_to_its_version_and_keeps_the_notes_of_reviewers(home: Path) -> None:
    finish(GOOD)
    finish(BETTER, version=2)
    client = MlflowClient()
    assert card_of("1").startswith("Former champion; the champion is version 2 now.")
    client.update_model_version(NAME, "2", f"{card_of('2')}\n\nI tried *ten* prompts.")
    client.update_registered_model(NAME, f"{client.get_registered_model(NAME).description}\n\nOurs.")
    roll_back(NAME, "it insults people")
    assert card_of("2").startswith("Rejected on ") and ": it insults people. Policy" in card_of("2")
    assert card_of("2").endswith(f"{NOTES}\n\nI tried *ten* prompts.")
    assert card_of("1").startswith("Champion since ")
    page = str(client.get_registered_model(NAME).description)
    assert page.startswith("The champion is version 1.") and page.endswith(f"{NOTES}\n\nOurs.")
    assert page.index("rolled back from version 2 to 1, by") < page.index("promoted from version 1 to 2")


@pytest.mark.parametrize("length", [10, 10_000])
def test_a_card_fits_into_mlflow_s_column(home: Path, length: int) -> None:
    manifest = finish(GOOD)
    for sample in manifest["samples"]:
        sample["prompt"] = sample["responses"]["policy"]["text"] = "<" * length
    pages = RunPages("1", manifest["runs"] | {"release": manifest["mlflow_run_id"]})
    text = fitting_card(manifest, "policy", f"{NAME}/1", "Champion.", pages, "n" * 1000)
    assert len(text) <= LONGEST and text.endswith("n" * 1000) and "### Gate" in text and "- serve" in text
