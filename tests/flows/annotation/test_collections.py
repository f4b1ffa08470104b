"""Collections by name, without a server: names, keys, and what a word means."""

import pytest

from alignment.errors import ConfigError
from flows.annotation.collections import find_numbers
from labeling.collection import collection_origin
from labeling.config import CrewConfig, LabelingConfig, WritingTasks
from labeling.names import collection_of
from labeling.screens.guidelines import shipped
from labeling.screens.render import screen
from labeling.store.versions import SeenProject
from labeling.tasks.projects import Opening, Origin, differences
from labeling.tasks.tasks import build_tasks, build_writing_tasks
from tests.labeling.helpers import response_set


def project(number: int, title: str, *, deleted: bool = False) -> SeenProject:
    return SeenProject(
        project=f"{number}@x",
        number=number,
        url="http://x",
        title=title,
        overlap=2,
        config_hash="0a1b2c3d",
        config="",
        deleted=deleted,
    )


KNOWN = [
    project(1, "town ranking (crew)"),
    project(2, "town ranking"),
    project(3, "town ranking (seed 1)"),
    project(4, "town pairwise", deleted=True),
]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ((), []),
        (("town", "ranking"), [2]),  # this is its name
        (("Town ranking (crew)",), [1]),
        (("seed", "1"), [3]),
        (("town",), [1, 2, 3, 4]),
        (("pairwise",), [4]),  # a deleted project keeps its judgements
        (("7",), [7]),  # a number, whether it was read before or not
    ],
)
def test_a_name_its_words_or_a_number_mean_collections(words: tuple[str, ...], numbers: list[int]) -> None:
    assert find_numbers(words, KNOWN) == numbers


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        ConfigError, match=r"no collection is named 'village ranking'.*town ranking \(crew\), town rank"
    ):
        find_numbers(("village", "ranking"), KNOWN)


def test_a_collection_is_named_by_its_recipe_and_by_what_tells_it_from_others() -> None:
    people = Opening(screen=screen("ranking"), title="rlhf", overlap=2, origin=Origin(recipe="town"))
    crew = people.model_copy(update={"origin": Origin(recipe="town", seed=3, annotators="simulated")})
    assert (people.name(1), people.name(2)) == ("town ranking", "town ranking 2")
    assert crew.name(1) == "town ranking (seed 3, crew)" and crew.name(2) == "town ranking 2 (seed 3, crew)"
    assert people.model_copy(update={"title": "mine"}).name(1) == "mine ranking"
    assert people.model_copy(update={"origin": Origin(recipe="town", final=True)}).name(1) == "town final ranking"
    long = people.model_copy(update={"origin": Origin(recipe="x" * 80, seed=999_999, annotators="simulated")})
    assert len(long.name(999)) <= 50 and len(LabelingConfig(title="x" * 24).title) == 24
    raw = {"description": crew.description}
    assert collection_of(raw) == crew.key and collection_of({"description": "Made by rlhf-flows; screen 1"}) == ""
    assert differences(raw, people) == "seed 3, judged by simulated annotators"
    assert differences({"description": people.description}, people) == "other prompts or responses"
    assert "an earlier version" in differences({"description": "Made by rlhf-flows; screen 0a1b2c3d"}, people)


def test_what_makes_another_collection_and_what_does_not() -> None:
    """The key is a function of what is judged and by whom, not of when it ends or of what is trained."""
    tasks, _ = build_tasks("pairwise", [response_set(n) for n in range(3)], 0)
    people, crew = LabelingConfig(annotators="people"), LabelingConfig()

    def content(config: LabelingConfig, count: int = 3, recipe: str = "town", seed: int = 0) -> str:
        return collection_origin(config, "pairwise", tasks[:count], recipe, seed).content

    later = people.model_copy(update={"deadline_hours": 1.0, "minimum_share": 0.5, "people": ("a@b.example",)})
    assert content(people) == content(later) == content(people, recipe="other", seed=3)
    another = crew.model_copy(update={"crew": CrewConfig(seed=1)})
    faster = crew.model_copy(update={"crew": CrewConfig(threads=1)})
    assert content(crew) == content(faster)
    assert len({content(people), content(people, 2), content(crew), content(another)}) == 4
    english, french = (screen("pairwise", shipped(language)) for language in ("en", "fr"))
    keys = [
        Opening(screen=shown, title=title, overlap=overlap, origin=Origin(annotators=who)).key
        for title, overlap, shown, who in (
            ("rlhf", 2, english, "people"),
            ("mine", 2, english, "people"),
            ("rlhf", 3, english, "people"),
            ("rlhf", 2, french, "people"),
            ("rlhf", 2, english, "simulated"),
        )
    ]
    assert len({*keys}) == 5
    prompts = [response_set(n).prompt for n in range(3)]
    writing = [build_writing_tasks(prompts[:count]) for count in (2, 3)]
    origins = [collection_origin(crew, "demonstration", of_kind, "town", 0) for of_kind in writing]
    assert origins[0] == origins[1] and origins[0].annotators == "people"  # answers are added as they come
    draft = crew.model_copy(update={"demonstrations": WritingTasks(draft=True)})
    assert collection_origin(draft, "demonstration", writing[0], "town", 0) != origins[0]
