"""A distributed rollout: each process samples and scores its share of the rows, and receives all rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from alignment.distributed.collectives import gathered, interleaved, process_count
from alignment.ppo.episodes import Episodes, Scored


def whole(score_share: Callable[[], Scored], device: torch.device) -> Scored:
    """The results of `score_share` in all processes, joined; an error in one process raises in all."""
    if process_count() == 1:
        return score_share()
    return joined(gathered(lambda: _moved(score_share(), torch.device("cpu"))), device)


def joined(shares: Sequence[Scored], device: torch.device) -> Scored:
    """The shares of all processes concatenated, with the rows in their original order."""
    parts = [share.episodes for share in shares]
    episodes = Episodes(
        sequences=interleaved([part.sequences for part in parts]),
        prompt_lengths=interleaved([part.prompt_lengths for part in parts]),
        response_mask=_rows([part.response_mask for part in parts]),
        logprobs=_rows([part.logprobs for part in parts]),
        sampler_logprobs=_rows([part.sampler_logprobs for part in parts]),
        ended=_rows([part.ended for part in parts]),
    )
    scored = Scored(
        episodes=episodes,
        components={name: _rows([share.components[name] for share in shares]) for name in shares[0].components},
        reference_logprobs=_rows([share.reference_logprobs for share in shares]),
        values=_rows([share.values for share in shares]),
        real_positions=sum(share.real_positions for share in shares),
        positions=sum(share.positions for share in shares),
    )
    return _moved(scored, device)


def _rows(shares: Sequence[Tensor]) -> Tensor:
    """Shapes: (b_i,) or (b_i, T_i) each -> (B,) or (B, T), T the longest, 0 beyond a share's own."""
    if shares[0].dim() == 2:
        longest = max(share.shape[1] for share in shares)
        shares = [functional.pad(share, (0, longest - share.shape[1])) for share in shares]
    return torch.stack(interleaved([share.unbind() for share in shares]))


def _moved(scored: Scored, device: torch.device) -> Scored:
    """A copy with all tensors on `device`, except the scores by component, which stay on the CPU."""
    episodes = scored.episodes
    return replace(
        scored,
        episodes=replace(
            episodes,
            response_mask=episodes.response_mask.to(device),
            logprobs=episodes.logprobs.to(device),
            sampler_logprobs=episodes.sampler_logprobs.to(device),
            ended=episodes.ended.to(device),
        ),
        reference_logprobs=scored.reference_logprobs.to(device),
        values=scored.values.to(device),
    )
