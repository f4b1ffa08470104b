"""The registry of alignment methods, which train the policy from SFT. A new method is one file, one
import and one entry.

Each file has the method's options, the function that does its work, and `METHOD`, its definition as a stage.
Slow imports (torch, trl) must not be at the top of these files: recipes are validated with them.
"""

from typing import Any

from alignment.methods import best_of_n, dpo, kto, ppo, rloo
from alignment.stage import Method

METHODS: tuple[Method[Any], ...] = (
    ppo.METHOD,
    dpo.METHOD,
    kto.METHOD,
    rloo.METHOD,
    best_of_n.METHOD,
)
