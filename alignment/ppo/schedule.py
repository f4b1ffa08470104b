"""Learning rates over a run: a function of the step alone."""

import math


def learning_rate_share(step: int, steps: int, warmup_steps: int, schedule: str, floor: float) -> float:
    """Share of the full learning rate at `step` (from 0): warm-up, then constant, linear or cosine."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return 1 - (1 - floor) * progress
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0
