"""The synthetic town: its facts are known, so that truthfulness can be measured.

`world` draws the people from a seed, `texts` writes what the web, the demonstrators and the users say about them, and
`judge` is the gold judge that scores a response on every criterion and explains its verdict.
"""

from alignment.town.judge import Judge, Verdict
from alignment.town.texts import build_town
from alignment.town.world import Person, World, draw_world

__all__ = ["Judge", "Person", "Verdict", "World", "build_town", "draw_world"]
