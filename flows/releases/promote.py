"""Promotion: who becomes champion, by the gates of a run or by hand, and the way back."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from alignment.config.gates import ChampionGate, ReleaseGate
from alignment.errors import ArtifactError, ConfigError, GateError
from flows.releases import history
from flows.releases.card import write_card, write_history
from flows.releases.gate import check_release, missed_gates
from flows.releases.head_to_head import HeadToHead, Release, head_to_head, release_of
from flows.releases.versions import CHAMPION, resolve
from flows.tracking import links, registry

FEWEST_WORDS = 3
Model = Annotated[
    str,
    Field(
        pattern=r"^(models:/)?[\w.-]+(@[\w.-]+|/[0-9]+)$",
        description="a registered version: NAME/VERSION or NAME@ALIAS, as in town-policy@candidate",
    ),
]
Alias = Annotated[str, Field(pattern=r"^\w[\w.-]*$", description="the alias to set; the served model is the champion")]
Despite = Annotated[
    str,
    Field(
        description="why to promote it although a gate was missed, in three words or more; logged. Empty: the gates "
        "must be passed"
    ),
]
RegisteredName = Annotated[str, Field(pattern=r"^[\w.-]+$", description="a registered model, as in town-policy")]
Why = Annotated[str, Field(description="the reason, in three words or more; logged")]
Target = Annotated[
    str, Field(pattern=r"^([0-9]+|none|)$", description="the version to go back to, or none; empty: the last champion")
]


@flow(name="promote", persist_result=False)
def promote(model: Model, alias: Alias = CHAMPION, despite: Despite = "") -> str:
    """Set an alias on a registered version, if its release passed the gates."""
    promoted = promote_version(model, alias, despite)
    links.link("registered-model", links.model_page(*registry.name_and_number(promoted)), f"MLflow: {promoted}")
    return promoted


@flow(name="rollback", persist_result=False)
def rollback(model: RegisteredName, why: Why, to: Target = "") -> str:
    """Make an earlier version champion again; the version that was champion is rejected."""
    return roll_back(model, why, to)


def promote_version(model: str, alias: str = CHAMPION, despite: str = "") -> str:
    """Set the alias and return "models:/NAME/VERSION".

    Raises GateError when the version's release missed its gate, does not beat the champion, was taken back, or there is
    no release, unless `despite` gives a reason to promote it anyway.
    """
    if despite:
        check_reason("despite", despite)
    name, number = resolve(model)
    champion, _ = history.standing(name)
    problem = "" if alias == CHAMPION and champion == number else gate_problem(name, number)
    if problem and not despite:
        raise GateError(f"{name}/{number} is not promoted: {problem}. To promote it anyway, give a reason in `despite`")
    why = f"{despite} (despite: {problem})" if problem else despite or "it passed its gates"
    history.set_alias(name, alias, number, action="promoted", why=why)
    _rewrite_cards(name, {champion, number} - {""})
    return f"models:/{name}/{number}"


def roll_back(name: str, why: str, to: str = "") -> str:
    """Make an earlier version champion and return it as NAME/VERSION; the version that was champion is rejected.

    `to` is a version's number, by default that of the last champion that was not rejected, or "none".
    """
    check_reason("why", why)
    champion, log = history.standing(name)
    if not champion:
        raise ArtifactError(f"{name} has no champion to roll back from; `rlhf releases` lists the versions")
    target = to or next(iter(reversed(history.former_champions(log))), "")
    if not target:
        raise ConfigError(
            f"{name}/{champion} is the first champion: name the version to go back to, or none, as in --to none"
        )
    number = "" if target == "none" else resolve(f"{name}/{target}")[1]
    if number == champion:
        raise ConfigError(f"{name}/{number} is the champion; name another version in --to")
    history.set_alias(name, CHAMPION, number, action="rolled back", why=why)
    _rewrite_cards(name, {champion, number} - {""})
    return f"{name}/{number}" if number else ""


def check_reason(option: str, reason: str) -> None:
    """Raise ConfigError for a reason that explains nothing."""
    if len(reason.split()) < FEWEST_WORDS:
        raise ConfigError(f"{option}: {reason!r} is too short: give the reason in {FEWEST_WORDS} words or more")


def promote_if_better(release: Release, gate: ReleaseGate, champion_gate: ChampionGate) -> dict[str, Any]:
    """Make the policy of a finished run champion, if it passes both gates; returns the verdict for its manifest."""
    name, number = registry.name_and_number(release.policy)
    while True:
        champion, log = history.standing(name)
        comparison = None if champion in ("", number) else _against(release, f"{name}/{champion}")
        result = verdict(release, gate, champion_gate, _rejection(number, log), comparison)
        if not result["passed"]:
            return result
        why = f"release {release.manifest['release']} passed its gate"
        why += "" if comparison is None else f" and {comparison.sentence()}"
        if history.set_alias(name, CHAMPION, number, action="promoted", why=why, before=champion):
            _rewrite_cards(name, {champion} - {"", number})  # its own follows when the release is logged
            return result


def verdict(
    release: Release,
    gate: ReleaseGate,
    champion_gate: ChampionGate,
    rejection: Sequence[str] = (),
    comparison: HeadToHead | None = None,
) -> dict[str, Any]:
    """What the gates say of a release, for its manifest; without a comparison that is the recipe's own gate."""
    missed = [*missed_gates(gate, release.manifest), *rejection]
    if comparison is not None:
        missed += comparison.missed(champion_gate)
    return {
        "passed": not missed,
        "missed": missed,
        "release_gate": gate.limits,
        "champion_gate": champion_gate.model_dump(),
        "checks": [check.model_dump() for check in check_release(gate, release.manifest)],
        "against": None if comparison is None else comparison.model_dump(),
    }


def gate_problem(name: str, number: str) -> str:
    """Why a version must not be promoted; empty when its newest release passes its gates as of now."""
    try:
        release = release_of(f"{name}/{number}")
    except ArtifactError as error:
        return str(error)
    gates: Mapping[str, Any] = release.manifest.get("gate") or {}
    champion, log = history.standing(name)
    missed = missed_gates(ReleaseGate.model_validate(gates.get("release_gate") or {}), release.manifest)
    missed += _rejection(number, log)
    if champion not in ("", number):
        limits = ChampionGate.model_validate(gates.get("champion_gate") or {})
        missed += _against(release, f"{name}/{champion}").missed(limits)
    return f"release {release.manifest['release']} missed its gate: {'; '.join(missed)}" if missed else ""


def _rejection(number: str, log: list[history.Change]) -> list[str]:
    change = history.rejected(log).get(number)
    return [] if change is None else [f"it was taken back on {change.time[:10]} by {change.who}: {change.why}"]


def _against(release: Release, champion: str) -> HeadToHead:
    """The comparison with the champion; one without a release or without its responses cannot be compared."""
    try:
        return head_to_head(release, release_of(champion))
    except ArtifactError as error:
        return HeadToHead(against=champion, problem=str(error))


def _rewrite_cards(name: str, numbers: set[str]) -> None:
    """Write the log's page, and the cards of versions whose standing changed; one without a release has no card."""
    write_history(name)
    for number in sorted(numbers):
        write_card(name, number)
