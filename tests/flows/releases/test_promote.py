"""Who becomes champion: by a run that passes its gates and beats the champion, or by hand with a reason; and back."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from alignment.config.gates import ReleaseGate
from alignment.errors import ArtifactError, ConfigError, GateError
from flows.releases import history
from flows.releases.history import changes
from flows.releases.promote import promote_version, roll_back
from flows.releases.versions import aliased
from tests.flows.releases.world import BETTER, GOOD, HALF, PROMPTS, finish, policy

NAME = "tiny-policy"


def champion() -> str:
    return aliased(NAME, "champion")


def entries() -> list[tuple[str, str, str]]:
    return [(change.action, change.before, change.after) for change in changes(NAME)]


def test_no_champion_without_a_gate(home: Path) -> None:
    verdict = finish(gate=ReleaseGate())["gate"]
    assert not verdict["passed"] and champion() == ""
    assert "the recipe has no release_gate" in verdict["missed"][0] and "max_tax_ratio: 1.05" in verdict["missed"][0]
    with pytest.raises(GateError, match=r"tiny-policy/1 is not promoted: .*has no release_gate"):
        promote_version(f"{NAME}/1")


def test_the_first_that_passes_is_champion_and_the_next_must_beat_it(home: Path) -> None:
    assert finish(GOOD)["gate"]["passed"] and champion() == "1"
    worse = finish(HALF, version=2)["gate"]
    assert champion() == "1" and not worse["passed"]
    # no win of 20: Wilson's interval is 0 to z²/(n + z²) = 3.8415/23.8415
    assert worse["missed"] == [
        "champion_gate.min_win_rate_low: 0.000, missed 0.5 by 0.500: it beats tiny-policy/1 on 0.000 of 20 decided "
        "prompts by the gold judge (95 % interval 0.000 to 0.161; 20 of 20 held-out prompts are shared); held-out loss "
        "1.000 of its"
    ]
    assert "champion_gate.max_tax_ratio: 1.100, missed 1.05" in finish(BETTER, version=3, tax=2.2)["gate"]["missed"][0]
    better = finish(BETTER, version=4)["gate"]
    assert better["passed"] and better["against"]["win_rate"]["rate"] == 1.0 and champion() == "4"
    assert entries() == [("promoted", "", "1"), ("promoted", "1", "4")]
    why = changes(NAME)[-1]
    assert "passed its gate and beats tiny-policy/1 on 1.000 of 20" in why.why and "@" in why.who


def test_the_same_run_again_changes_nothing(home: Path) -> None:
    finish(GOOD)
    assert finish(GOOD)["gate"]["passed"]
    finish(BETTER, version=2)
    assert not finish(GOOD)["gate"]["passed"]  # the first recipe again: its policy was replaced by a better one
    assert champion() == "2" and entries() == [("promoted", "", "1"), ("promoted", "1", "2")]


def test_what_cannot_be_compared_does_not_replace_the_champion(home: Path) -> None:
    finish(GOOD)
    other = finish(BETTER, version=2, seed=1, prompts=[f"q{number}" for number in range(20)])["gate"]["missed"]
    assert other == [
        "it cannot be compared with tiny-policy/1: they share 0 of 20 held-out prompts, since the prompts of other "
        "seeds or data are others; the champion stands"
    ]
    finish(GOOD, recipe="files", gold=False)
    assert finish(BETTER, recipe="files", version=2, gold=False)["gate"]["passed"]  # by the same reward model
    (gone,) = finish(BETTER, recipe="files", version=3, gold=False, reward=2)["gate"]["missed"]
    assert "cannot be compared with files-policy/2: the output of stage 'evaluate' of files-0-00000002 is gone" in gone
    assert aliased("files-policy", "champion") == "2" and champion() == "1"


def test_half_of_the_prompts_are_enough(home: Path) -> None:
    finish(GOOD)
    shared = PROMPTS[:10] + [f"q{number}" for number in range(10)]
    against = finish(BETTER, version=2, prompts=shared)["gate"]["against"]
    assert (against["shared"], against["prompts"], against["win_rate"]["decided"]) == (10, 20, 10) and champion() == "2"


def test_a_rollback_is_not_undone_by_the_next_run(home: Path) -> None:
    finish(GOOD)
    finish(BETTER, version=2)
    with pytest.raises(ConfigError, match="why: 'bad' is too short"):
        roll_back(NAME, "bad")
    assert roll_back(NAME, "it insults people") == f"{NAME}/1" and champion() == "1"
    again = finish(BETTER, version=2)["gate"]
    assert champion() == "1" and "taken back on" in again["missed"][0] and "it insults people" in again["missed"][0]
    with pytest.raises(GateError, match=r"it was taken back on .*: it insults people"):
        promote_version(f"{NAME}/2")
    assert finish(0.95, version=3)["gate"]["passed"] and champion() == "3"  # another version that beats the champion
    roll_back(NAME, "too long for users")
    assert champion() == "1"  # not 2, which was taken back
    promote_version(f"{NAME}/2", despite="the insults were quotations")
    assert champion() == "2" and finish(BETTER, version=2)["gate"]["passed"]
    assert [change.action for change in changes(NAME)] == [
        *("promoted", "promoted", "rolled back", "promoted", "rolled back", "promoted"),
    ]


def test_the_only_champion_can_be_taken_back(home: Path) -> None:
    finish(GOOD)
    with pytest.raises(ConfigError, match="is the first champion: name the version to go back to, or none"):
        roll_back(NAME, "it is no good")
    assert roll_back(NAME, "it is no good", "none") == "" and champion() == ""
    assert not finish(GOOD)["gate"]["passed"] and champion() == ""
    with pytest.raises(ArtifactError, match="has no champion to roll back from"):
        roll_back(NAME, "it is no good")


def test_an_alias_moved_in_mlflow_is_noted_and_stays(home: Path) -> None:
    finish(GOOD)
    finish(BETTER, version=2)
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")  # by the pencil on MLflow's page
    assert not finish(BETTER, version=2)["gate"]["passed"] and champion() == "1"
    assert entries()[-1] == ("set elsewhere", "2", "1") and changes(NAME)[-1].who == "unknown"


@pytest.mark.parametrize("call", ["set_registered_model_alias", "set_registered_model_tag"])
def test_a_promotion_that_was_killed_is_finished_once(home: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(GOOD, gate=ReleaseGate(min_win_rate=0.9))
    original, count = getattr(MlflowClient, call), 0

    def killed(*arguments: object) -> None:
        nonlocal count
        count += 1
        if call == "set_registered_model_alias" or count == 2:  # the entry of the log is written, its effect not
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, killed)
        with pytest.raises(KeyboardInterrupt):
            promote_version(f"{NAME}/1", despite="we need one now")
    assert champion() == ("" if call == "set_registered_model_alias" else "1")
    promote_version(f"{NAME}/1", despite="we need one now")
    assert champion() == "1" and entries() == [("promoted", "", "1")]


def test_a_gate_holds_until_somebody_says_why_not(home: Path) -> None:
    finish(GOOD, win=0.5)
    with pytest.raises(GateError, match=r"tiny-policy/1 is not promoted: .*missed 0\.6 by 0\.100"):
        promote_version(f"{NAME}/1")
    with pytest.raises(ConfigError, match="'ok' is too short: give the reason in 3 words or more"):
        promote_version(f"{NAME}/1", despite="ok")
    promote_version(
        f"{NAME}@candidate" if aliased(NAME, "candidate") else f"{NAME}/1", despite="the judges were asleep"
    )
    assert champion() == "1" and changes(NAME)[0].why.startswith("the judges were asleep (despite: release tiny-0-")


def test_a_version_without_a_release_or_that_is_not_there_is_named(home: Path) -> None:
    policy("policy", "key")
    with pytest.raises(GateError, match="no release contains policy/1; run its recipe to the end"):
        promote_version("policy/1")
    with pytest.raises(ArtifactError, match="policy has versions 1"):
        promote_version("policy/9")


def test_the_commands_promote_and_roll_back(home: Path) -> None:
    from flows.cli import main as cli

    finish(GOOD)
    finish(HALF, version=2)
    shown = CliRunner().invoke(cli.app, ["promote", f"{NAME}/1", "--alias", "shadow"])
    assert shown.exit_code == 0 and "models:/tiny-policy/1 is now shadow" in shown.output, shown.output
    CliRunner().invoke(cli.app, ["promote", f"{NAME}/2", "--despite", "it is shorter, though"])
    shown = CliRunner().invoke(cli.app, ["rollback", NAME, "--why", "people disliked it"])
    assert shown.exit_code == 0 and "tiny-policy/1 is champion again" in shown.output, shown.output
    listed = CliRunner().invoke(cli.app, ["releases", "--log"], env={"COLUMNS": "300"})
    assert listed.exit_code == 0, listed.output
    rows = [line for line in listed.output.splitlines() if "tiny-policy/" in line]
    assert "rejected" in rows[0] and "champion" in rows[1]
    assert "rolled back from version 2 to 1, by" in listed.output and "people disliked it" in listed.output
    assert history.former_champions(changes(NAME)) == []
