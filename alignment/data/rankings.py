"""Several ranked or scored responses to a prompt, converted to all pairwise comparisons.

Two public forms: trees of messages as OpenAssistant publishes them, where people ranked the replies to a message
(`rank` 0 is best), and rows with one prompt and several scored or ranked responses as in UltraFeedback and Nectar.
K responses make K(K−1)/2 comparisons, as in InstructGPT (Ouyang et al. 2022, section 3.5). Equal ranks are ties:
strength 0.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from alignment.config.stages import Columns
from alignment.data.conversations import BadRow, Row, columns_of, kind_of, make_prompt, make_response
from alignment.data.formats import ABSENT, look_up, value_of
from alignment.data.judgements import STRONGEST, as_number, prompt_turns
from alignment.records import Comparison, Message, Prompt, Record, Rejected, Response, stable_id


class Group(Record):
    """The content of one row: its comparisons, and its parts that do not fit."""

    comparisons: tuple[Comparison, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    cut: bool = False  # turns after the compared ones were left out


def all_pairs(
    prompt: Prompt, ranked: Sequence[tuple[float, Response]], name: str, annotation_id: str
) -> Iterator[Comparison]:
    """Every pair of responses; the response with the lower rank is chosen. `name` identifies the group in ids.

    The strength is the difference of dense ranks, at most 3; so it does not depend on the scale of a score, and equal
    ranks are ties.
    """
    dense = {rank: number for number, rank in enumerate(sorted({rank for rank, _ in ranked}))}
    ordered = sorted(((dense[rank], response) for rank, response in ranked), key=lambda pair: pair[0])
    for (above, chosen), (below, rejected) in combinations(ordered, 2):
        yield Comparison(
            id=stable_id("c", name, *sorted((chosen.id, rejected.id))),
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            strength=min(below - above, STRONGEST),
            annotation_id=annotation_id,
        )


# --- trees -----------------------------------------------------------------------------------------------------------


def from_tree(row: Row, path: str, number: int) -> Group:
    """All ranked siblings of a tree as comparisons under the turns that lead to them.

    A message that cannot be used is rejected with its whole subtree, which would lack its context. Replies without a
    rank are rejected if they have siblings; an only reply has nothing to be compared with.
    """
    good: list[Comparison] = []
    bad: list[Rejected] = []
    queue: list[tuple[Any, tuple[Message, ...]]] = [(tree_root(row), ())]
    for node, before in queue:  # grows as it is read: breadth first
        try:
            turns = (*before, _turn(node, "prompter"))
            replies = _replies(node)
        except BadRow as error:
            bad.append(Rejected(file=path, line=number, reason=str(error), row=node))
            continue
        prompt = make_prompt(turns)
        ranked: list[tuple[float, Response]] = []
        for reply in replies:
            try:
                answer = _turn(reply, "assistant")
                queue += [(child, (*turns, answer)) for child in _replies(reply)]
            except BadRow as error:
                bad.append(Rejected(file=path, line=number, reason=str(error), row=reply))
                continue
            problem = _rank(reply, len(replies), make_response(prompt, answer.content), ranked)
            if problem:
                alone = {name: value for name, value in reply.items() if name != "replies"}
                bad.append(Rejected(file=path, line=number, reason=problem, row=alone))
        origin = f"{Path(path).name}:{number}:{node.get('message_id', prompt.id)}"
        good += all_pairs(prompt, ranked, f"{path}:{number}:{prompt.id}", origin)
    return Group(comparisons=tuple(good), rejected=tuple(bad))


def _rank(reply: Row, siblings: int, response: Response, ranked: list[tuple[float, Response]]) -> str:
    """Append a reply to the ranked ones; returns the reason if it cannot be ranked, else ""."""
    rank = reply.get("rank")
    if type(rank) is not int:
        return "a reply without a rank among several" if siblings > 1 else ""
    if any(response.id == other.id for _, other in ranked):
        return "two replies to a message are the same"
    ranked.append((rank, response))
    return ""


def tree_root(row: Row) -> Row:
    """The first message of a tree. Raises BadRow for a row that is not a tree."""
    root = row.get("prompt")
    if not isinstance(root, dict) or "replies" not in root:
        raise BadRow(f"no tree: no message with `replies` under `prompt` among {sorted(row)}")
    return root


def tree_demonstration(row: Row) -> tuple[list[Message], str]:
    """The first message of a tree and the best-ranked reply."""
    root = tree_root(row)
    best = [reply for reply in _replies(root) if isinstance(reply, dict) and reply.get("rank") == 0]
    if not best:
        raise BadRow("no reply to the first message was ranked best")
    return [_turn(root, "prompter")], _turn(best[0], "assistant").content


def tree_prompt(row: Row) -> Prompt:
    """The first message of a tree as a prompt."""
    return make_prompt([_turn(tree_root(row), "prompter")])


def _turn(node: Any, role: str) -> Message:
    if not isinstance(node, dict) or node.get("role") != role or not isinstance(node.get("text"), str):
        raise BadRow(f"expected a message of role {role} with `text`")
    if node.get("deleted"):
        raise BadRow("a deleted message")
    if not node["text"].strip():
        raise BadRow(f"an empty {role} message")
    return Message(role="user" if role == "prompter" else "assistant", content=node["text"].strip())


def _replies(node: Row) -> list[Any]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise BadRow("`replies` is not a list")
    return replies


# --- scores ----------------------------------------------------------------------------------------------------------


def from_scores(row: Row, columns: Columns, path: str, number: int) -> Group:
    """One prompt, several responses with a score each, the highest best, or with a rank each, the lowest best.

    The responses are objects with a text and a score, or texts beside a list of scores. With both, the scores count. A
    response that cannot be used is rejected; the others count. Raises BadRow where there is no prompt, or where the
    ranks contradict the scores.
    """
    prompt = make_prompt(prompt_turns(row, columns))
    ranked: list[tuple[float, Response]] = []
    bad: list[Rejected] = []
    items = _scored(row, columns)
    _check_ranks(items, columns)
    for item in items:
        try:
            response, rank = make_response(prompt, _text(item, columns)), _item_rank(item, columns)
            if any(response.id == other.id for _, other in ranked):
                raise BadRow("two responses to a prompt are the same")
            ranked.append((rank, response))
        except BadRow as error:
            bad.append(Rejected(file=path, line=number, reason=str(error), row=item))
    if len(ranked) < 2:
        bad.append(Rejected(file=path, line=number, reason="fewer than two usable responses", row=row))
    pairs = all_pairs(prompt, ranked, f"{path}:{number}:{prompt.id}", f"{Path(path).name}:{number}")
    return Group(comparisons=tuple(pairs), rejected=tuple(bad))


def _scored(row: Row, columns: Columns) -> list[Any]:
    """The responses, each with its score and rank; lists of these beside the responses are joined to them."""
    responses = value_of(row, columns, "responses")
    if not isinstance(responses, list):
        raise BadRow(f"the responses are not a list but {type(responses).__name__}")
    for name in filter(None, (columns.score, columns.rank)):
        values = look_up(row, name)
        if values is ABSENT or any(
            isinstance(item, Mapping) and look_up(item, name) is not ABSENT for item in responses
        ):
            continue
        if not isinstance(values, list) or len(values) != len(responses):
            raise BadRow(f"`{name}` is not a list of the same length as the responses")
        responses = [
            {**item, name: value} if isinstance(item, Mapping) else {columns.text or "text": item, name: value}
            for item, value in zip(responses, values, strict=True)
        ]
    return responses


def _check_ranks(items: Sequence[Any], columns: Columns) -> None:
    """Raise BadRow if a response with a higher score than another has the lower place by rank."""
    if not (columns.score and columns.rank):
        return
    both: list[tuple[float, float]] = []
    for item in items:
        try:
            score, rank = (
                as_number(look_up(item, name) if isinstance(item, Mapping) else ABSENT, name)
                for name in (columns.score, columns.rank)
            )
        except BadRow:
            continue  # no number, so it says nothing of the order
        both.append((score, rank))
    both.sort(key=lambda pair: (-pair[0], pair[1]))
    lowest = -math.inf
    for _, group in groupby(both, key=lambda pair: pair[0]):
        ranks = [rank for _, rank in group]
        if ranks[0] < lowest:
            raise BadRow(
                f"{columns.rank!r} (the lowest is best) contradicts {columns.score!r} (the highest is best): name the "
                "one that counts in `columns`"
            )
        lowest = max(lowest, ranks[-1])


def _text(item: Any, columns: Columns) -> str:
    text = item
    if isinstance(item, Mapping):
        path = columns.text or "text"
        text = look_up(item, path)
        if text is ABSENT:
            raise BadRow(f"no text: no {path!r} among {columns_of(item)}")
    if not isinstance(text, str):
        raise BadRow(f"a response is not text but {kind_of(text)}")
    return text


def _item_rank(item: Any, columns: Columns) -> float:
    """The rank of a response, the lowest best."""
    name = columns.score or columns.rank or "score"
    value = look_up(item, name) if isinstance(item, Mapping) else ABSENT
    if value is ABSENT:
        raise BadRow(f"a response without {name!r}")
    by_rank = columns.rank and not columns.score
    return as_number(value, "rank of a response") if by_rank else -as_number(value, "score of a response")
