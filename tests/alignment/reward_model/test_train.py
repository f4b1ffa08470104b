"""The reward model: one forward per response, normalisation, recovered preferences, and validation."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from alignment.config.stages import RewardConfig
from alignment.journal import Journal
from alignment.models.chat import ChatFormat
from alignment.models.encoding import encode_comparison, encode_file
from alignment.models.likelihood import add_likelihood, likelihood_head, without_likelihood
from alignment.models.lora import has_adapter
from alignment.models.reward_adapters import load_reward
from alignment.models.scalar import (
    load_causal_model,
    load_scalar_model,
    reward_scores,
    save_model,
    scalar_head,
    scalar_model_from,
)
from alignment.records import Comparison, read_records
from alignment.reward_model import evaluate as examination
from alignment.reward_model.evaluate import accuracy_by_criterion, length_correlation, score_margins
from alignment.reward_model.train import (
    PromptGroup,
    batch_loss,
    group_by_prompt,
    groups_with_head,
    normalise,
    train_reward_model,
    won_shares,
)
from tests.alignment.tiny_world import (
    comparison,
    demonstration,
    encoded,
    make_base,
    make_model,
    prompt_tokens,
    response_tokens,
    user,
    write,
)

ANSWERS = ("Ada plays the violin.", "Ada plays a cat.", "Bo.", "Nobody knows why the river is so cold.")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model and its tokenizer in a directory."""
    place = tmp_path_factory.mktemp("reward")
    return place, *make_base(place)


@pytest.fixture
def model(base):
    """A reward model with a random head."""
    made = scalar_model_from(make_model(base[2]))
    nn.init.normal_(scalar_head(made).weight, generator=torch.Generator().manual_seed(0))
    return made


def all_pairs(question: str, answers=ANSWERS) -> list[Comparison]:
    """Every pair of the answers, the earlier one chosen."""
    return [comparison(question, a, b) for i, a in enumerate(answers) for b in answers[i + 1 :]]


def raw_scores(model, tokenizer, question, answers) -> list[float]:
    """The head on the last hidden state, one forward a response: no batch, no padding."""
    sequences = [prompt_tokens(tokenizer, user(question)) + response_tokens(tokenizer, answer) for answer in answers]
    with torch.no_grad():
        hidden = [model.base_model(torch.tensor([s])).last_hidden_state[0, -1] for s in sequences]
        return [float(scalar_head(model)(one)) for one in hidden]


def test_a_prompts_pairs_share_one_element_and_each_response_is_there_once(base) -> None:
    rows = all_pairs("Who?") + all_pairs("What?", ANSWERS[:2]) + [comparison("Who?", ANSWERS[3], ANSWERS[0])]
    first, second = group_by_prompt(encoded(base[2], rows))
    assert first.pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (3, 0)] and second.pairs == [(0, 1)]
    head = prompt_tokens(base[2], user("Who?"))
    assert first.sequences == [head + response_tokens(base[2], answer) for answer in ANSWERS]


def test_each_response_is_forwarded_once_whatever_the_number_of_pairs(base, model) -> None:
    groups = group_by_prompt(encoded(base[2], all_pairs("Who?") + all_pairs("What?")))
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    batch_loss(model, groups)
    hook.remove()
    assert seen == [8]  # two prompts of four responses; their 12 pairs would be 24 rows


def test_loss_and_accuracy_of_a_batch_by_hand(base, model) -> None:
    groups = group_by_prompt(encoded(base[2], all_pairs("Who?", ANSWERS[:3]) + all_pairs("What?", ANSWERS[:2])))
    a, b = raw_scores(model, base[2], "Who?", ANSWERS[:3]), raw_scores(model, base[2], "What?", ANSWERS[:2])
    who = [a[0] - a[1], a[0] - a[2], a[1] - a[2]]
    what = [b[0] - b[1]]
    by_prompt = [sum(math.log1p(math.exp(-d)) for d in group) / len(group) for group in (who, what)]
    loss, accuracy = batch_loss(model, groups).tolist()
    assert loss == pytest.approx(sum(by_prompt) / 2, abs=1e-5)  # every prompt weighs the same
    assert accuracy == pytest.approx(sum(d > 0 for d in who + what) / 4)


def test_weights_in_the_loss_by_hand(base, model) -> None:
    rows = [
        row.model_copy(update={"weight": weight})
        for row, weight in zip(all_pairs("Who?", ANSWERS[:3]), (2.0, 0.0, 0.5), strict=True)
    ] + all_pairs("What?", ANSWERS[:2])
    groups = group_by_prompt(encoded(base[2], rows))
    assert [group.weights for group in groups] == [[2.0, 0.5], [1.0]]  # without weight, nothing is said
    a, b = raw_scores(model, base[2], "Who?", ANSWERS[:3]), raw_scores(model, base[2], "What?", ANSWERS[:2])
    losses = [math.log1p(math.exp(-d)) for d in (a[0] - a[1], a[1] - a[2], b[0] - b[1])]
    counts = (2.0 / 2, 0.5 / 2, 1.0)
    expected = sum(w * loss for w, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert batch_loss(model, groups)[0].item() == pytest.approx(expected, abs=1e-5)


def test_parts_of_a_batch_add_up_to_it(base, model) -> None:
    rows = all_pairs("Who?") + [row.model_copy(update={"weight": 0.25}) for row in all_pairs("What?", ANSWERS[:2])]
    groups = group_by_prompt(encoded(base[2], rows + all_pairs("Why?", ANSWERS[1:])))
    head = base[1].get_output_embeddings()
    parts = [batch_loss(model, part, head, 0.7, groups) for part in (groups[:1], groups[1:])]
    torch.testing.assert_close(parts[0] + parts[1], batch_loss(model, groups, head, 0.7))


def test_what_is_too_long_is_put_aside(base, tmp_path) -> None:
    rows = [comparison("Who?", "Ada.", "word " * 70), comparison("Who?", "Ada.", "Bo.")]
    write(tmp_path / "train.jsonl", rows)
    encode = partial(encode_comparison, ChatFormat.of(base[2]), max_length=64)
    part = encode_file(tmp_path / "train.jsonl", Comparison, encode)
    assert part.too_long == 1 and part.rejected[0].line == 1 and "tokens, more than 64" in part.rejected[0].reason
    (group,) = group_by_prompt(part.rows)
    assert len(group.sequences) == 2


def test_demonstrations_score_nil_on_average_and_judged_responses_spread_by_one(base, model, tmp_path) -> None:
    _, _, tokenizer = base
    rows = [demonstration(f"Who plays {i}?", answer) for i, answer in enumerate(ANSWERS)]
    turns = [ChatFormat.of(tokenizer).turn(row.messages, row.completion) for row in rows]
    groups = group_by_prompt(encoded(tokenizer, all_pairs("Who?")))
    normalise(model, groups, turns)
    demos = [prompt_tokens(tokenizer, r.messages) + response_tokens(tokenizer, r.completion) for r in rows]
    starts = [len(prompt_tokens(tokenizer, r.messages)) for r in rows]
    assert float(reward_scores(model, demos, starts).mean()) == pytest.approx(0, abs=1e-5)
    judged = groups[0].sequences
    spread = reward_scores(model, judged, [groups[0].prompt_length] * len(judged)).std()
    assert float(spread) == pytest.approx(1, abs=1e-5)


# --- examination, with a model whose score is the number in the response --------------------------------------------


def scored(monkeypatch, tokenizer) -> None:
    """Responses are numbers, and their own score."""

    def scores(model, sequences, prompt_lengths):
        texts = [tokenizer.decode(sequence) for sequence in sequences]
        return torch.tensor([float(text.split("<|assistant|>")[1].removesuffix("<|end|>")) for text in texts])

    monkeypatch.setattr(examination, "reward_scores", scores)


def test_accuracy_by_criterion_counts_only_what_was_rated_differently() -> None:
    rows = [
        comparison("a", "x", "y", criteria={"helpful": 2, "truthful": 0, "harmless": -1}),
        comparison("b", "x", "y", criteria={"helpful": -1, "harmless": 1}),
        comparison("c", "x", "y", criteria={"helpful": 1}),
        comparison("d", "x", "y"),
    ]
    figures = accuracy_by_criterion(torch.tensor([0.5, 0.5, -0.5, 0.5]), rows, "t")
    # helpful: agrees in a, not in b, not in c; harmless: not in a, agrees in b; truthful: never rated differently
    assert figures == {"accuracy_t_helpful": pytest.approx(1 / 3), "accuracy_t_harmless": 0.5}


def test_margins_and_length_correlation_by_hand(base, monkeypatch) -> None:
    _, _, tokenizer = base
    scored(monkeypatch, tokenizer)
    rows = [comparison("a", "3", "1"), comparison("a", "1", "22"), comparison("b", "22", "3")]
    rows = encoded(tokenizer, rows)
    assert score_margins(None, rows).tolist() == [2, -21, 19]
    lengths = {text: len(response_tokens(tokenizer, text)) for text in ("3", "1", "22")}
    assert lengths["3"] == lengths["1"] < lengths["22"]
    # distinct responses: a3, a1, a22, b22, b3; scores 3 1 22 22 3 against lengths short short long long short
    # deviations −7.2 −9.2 11.8 11.8 −7.2 and −.4 −.4 .6 .6 −.4: 23.6 / √(466.8 · 1.2)
    assert length_correlation(None, rows) == pytest.approx(23.6 / math.sqrt(466.8 * 1.2), abs=1e-5)


# --- the stage -------------------------------------------------------------------------------------------------------

WORDS = {"violin": 2.0, "dog": 1.0, "cat": 0.0, "river": -1.5}  # the utilities that judges go by


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The stage on judgements drawn from known utilities: P(a beats b) = σ(u_a − u_b)."""
    place = tmp_path_factory.mktemp("trained")
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(120):
        for i, a in enumerate(WORDS):
            for b in list(WORDS)[i + 1 :]:
                wins = torch.rand((), generator=draw) < 1 / (1 + math.exp(WORDS[b] - WORDS[a]))
                rows.append(comparison(f"Who {number}?", *((a, b) if wins else (b, a)), criteria={"helpful": 1}))
    write(place / "train.jsonl", rows[:480])
    write(place / "heldout_prompts.jsonl", rows[480:])
    write(place / "heldout_annotators.jsonl", [])
    write(place / "demonstrations.jsonl", [demonstration(f"Who {n}?", "violin") for n in range(20)])
    config = RewardConfig(epochs=8, batch_prompts=8, learning_rate=2e-3, max_length_tokens=64)
    out = place / "out"
    figures = train_reward_model(
        config, out, Journal(out), seed=0, sft=base[0], comparisons=place, demonstrations=place
    )
    return place, figures


def test_known_utilities_are_recovered_up_to_a_constant_and_the_scale(base, trained) -> None:
    model = load_scalar_model(trained[0] / "out" / "model")
    asked = [prompt_tokens(base[2], user(f"Who {n}?")) for n in range(80, 120)]  # held out
    sequences = [head + response_tokens(base[2], word) for word in WORDS for head in asked]
    scores = reward_scores(model, sequences, [len(head) for head in asked] * len(WORDS)).view(4, 40).mean(1)
    raw = scores * model.config.reward_scale
    wanted = torch.tensor(list(WORDS.values())) - sum(WORDS.values()) / 4
    # 80 judgements of each pair leave a standard error of about 0.25 on a utility
    assert (raw - raw.mean()).tolist() == pytest.approx(wanted.tolist(), abs=0.5)
    assert scores.argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert scores[0].item() == pytest.approx(0, abs=0.25)  # what the demonstrations say is nil


def test_figures_of_the_examination(trained) -> None:
    place, figures = trained
    tested = read_records(place / "heldout_prompts.jsonl", Comparison)[0]
    assert (figures["train_pairs"], figures["train_prompts"], figures["too_long"]) == (480, 80, 0)
    assert figures["pairs_heldout_prompts"] == len(tested) == 240
    ordered = sum(WORDS[row.chosen.text] > WORDS[row.rejected.text] for row in tested) / 240
    assert figures["accuracy_heldout_prompts"] == pytest.approx(ordered, abs=0.05)
    assert figures["accuracy_heldout_prompts_helpful"] == figures["accuracy_heldout_prompts"]
    assert figures["bag_of_words_accuracy"] == pytest.approx(ordered, abs=0.05)
    assert figures["longer_wins"] == sum(len(r.chosen.text) > len(r.rejected.text) for r in tested) / 240
    assert figures["ece"] < 0.15 and "accuracy_heldout_annotators" not in figures
    assert (place / "out" / "figures" / "calibration.png").exists()


@pytest.mark.parametrize("members", [1, 2])
def test_an_adapter_is_trained_over_frozen_weights_and_written_in_both_forms(base, trained, tmp_path, members) -> None:
    language_model = load_causal_model(base[0] / "model")
    config = RewardConfig(
        epochs=3,
        batch_prompts=8,
        learning_rate=5e-3,
        max_length_tokens=64,
        lora_rank=4,
        members=members,
        likelihood=True,
        lm_coef=0.1,
    )
    figures = train_reward_model(
        config, tmp_path, Journal(tmp_path), seed=0, sft=base[0], comparisons=trained[0], demonstrations=trained[0]
    )
    assert figures["accuracy_heldout_prompts"] == pytest.approx(trained[1]["accuracy_heldout_prompts"], abs=0.05)
    head = prompt_tokens(base[2], user("Who 90?"))
    sequences = [head + response_tokens(base[2], word) for word in WORDS]
    for name in ["model", "model-1"][:members]:
        whole, adapter = (load_reward(tmp_path / name, language_model, shared=shared) for shared in (False, True))
        assert has_adapter(adapter) and not has_adapter(whole)
        told = [reward_scores(one, sequences, [len(head)] * len(WORDS)) for one in (whole, adapter)]
        assert torch.allclose(*told, atol=1e-4) and told[0].std() > 0.5
        change = whole.base_model.layers[0].mlp.down_proj.weight - language_model.model.layers[0].mlp.down_proj.weight
        assert 1 <= torch.linalg.matrix_rank(change.detach(), rtol=1e-3) <= 4
        assert torch.equal(whole.base_model.embed_tokens.weight, language_model.model.embed_tokens.weight)


def test_a_reward_model_starts_without_a_preference(base) -> None:
    made = scalar_model_from(base[1])
    groups = group_by_prompt(encoded(base[2], all_pairs("Who?")))
    loss, _ = batch_loss(made, groups)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_score_means_the_same_after_loading(base, model, tmp_path) -> None:
    rows = [comparison("Who?", *ANSWERS[:2])]
    rows = encoded(base[2], rows)
    normalise(model, group_by_prompt(rows), [ChatFormat.of(base[2]).turn(user("Who?"), ANSWERS[2])])
    save_model(model, tmp_path / "model")
    loaded = load_scalar_model(tmp_path / "model")
    before, after = (score_margins(one, rows).tolist() for one in (model, loaded))
    assert after == pytest.approx(before, abs=1e-5)


# --- the likelihood term ---------------------------------------------------------------------------------------------


def by_hand(language_model, sequence: list[int], prompt_length: int, c: float = 1.0, u=None) -> float:
    """Mean of (c + u · h_t) log p(y_t), one token at a time through the whole language model."""
    total = 0.0
    for place in range(prompt_length, len(sequence)):
        with torch.no_grad():
            logits = language_model(torch.tensor([sequence[:place]])).logits[0, -1]
            read = language_model.base_model(torch.tensor([sequence[: place + 1]])).last_hidden_state[0, -1]
        coef = c if u is None else c + (u * read).sum().item()
        total += coef * (logits - logits.logsumexp(-1))[sequence[place]].item()
    return total / (len(sequence) - prompt_length)


def with_likelihood(base, coef: float):
    """A reward model with a head of zeros, so that its likelihood term is all there is, and its language model."""
    language_model = make_model(base[2])
    made = scalar_model_from(language_model)
    add_likelihood(made, language_model.get_output_embeddings())
    likelihood_head(made).coef.bias.data.fill_(coef)
    return made, language_model


def test_the_likelihood_term_is_the_mean_over_the_response_alone(base) -> None:
    made, language_model = with_likelihood(base, 0.5)
    sequences, starts = [[5, 6, 7, 8, 9], [5, 6, 7], [9, 4, 4, 4, 4, 4, 8]], [2, 2, 1]
    expected = [0.5 * by_hand(language_model, *row) for row in zip(sequences, starts, strict=True)]
    for budget in (1, 1000):  # alone, and padded beside longer ones
        assert reward_scores(made, sequences, starts, budget).tolist() == pytest.approx(expected, abs=1e-5)


def test_what_a_tokens_likelihood_is_worth_is_read_from_its_own_hidden_state(base) -> None:
    made, language_model = with_likelihood(base, 0.5)
    u = torch.linspace(-1, 2, made.config.hidden_size)
    likelihood_head(made).coef.weight.data.copy_(u)
    sequences, starts = [[5, 6, 7, 8, 9], [5, 6, 7], [9, 4, 4, 4, 4, 4, 8]], [2, 2, 1]
    expected = [by_hand(language_model, *row, 0.5, u) for row in zip(sequences, starts, strict=True)]
    assert reward_scores(made, sequences, starts).tolist() == pytest.approx(expected, abs=1e-4)


def test_people_who_like_likely_answers_teach_a_positive_coefficient(base, tmp_path) -> None:
    made, language_model = with_likelihood(base, 0.0)
    groups = group_by_prompt(encoded(base[2], all_pairs("Who?")))
    (group,) = groups
    values = [by_hand(language_model, s, group.prompt_length) for s in group.sequences]
    pairs = [(i, j) for i in range(len(values)) for j in range(len(values)) if values[i] > values[j]]
    loss, _ = batch_loss(made, [type(group)(group.sequences, pairs, group.prompt_length, [1.0] * len(pairs))])
    loss.backward()
    coef = likelihood_head(made).coef
    # d/dc of mean log(1 + exp(-c Δ)) at c = 0 is -mean Δ / 2
    mean = sum(values[i] - values[j] for i, j in pairs) / len(pairs)
    assert coef.bias.grad.item() == pytest.approx(-mean / 2, rel=1e-4)
    trained = [p for each in groups_with_head(made, RewardConfig()) for p in each["params"]]
    assert all(sum(p is one for one in trained) == 1 for p in coef.parameters())
    assert not any(p.requires_grad for p in likelihood_head(made).language_head.parameters())


def test_the_likelihood_term_is_saved_beside_a_plain_model_and_left_out_of_a_value_model(base, tmp_path) -> None:
    made, _ = with_likelihood(base, 0.5)
    likelihood_head(made).coef.weight.data.fill_(0.25)
    save_model(made, tmp_path / "model")
    loaded = load_scalar_model(tmp_path / "model")
    rows, starts = [[5, 6, 7, 8], [5, 6]], [2, 1]
    expected = reward_scores(made, rows, starts).tolist()
    assert min(map(abs, expected)) > 0.1
    assert reward_scores(loaded, rows, starts).tolist() == pytest.approx(expected, abs=1e-6)
    assert reward_scores(without_likelihood(loaded), rows, starts).tolist() == [0, 0]


def test_text_regularisation_counts_a_response_by_what_it_won(base) -> None:
    made, language_model = with_likelihood(base, 0.0)
    head = language_model.get_output_embeddings()
    group = PromptGroup([[5, 6, 7], [5, 8, 9, 4], [5, 4]], [(0, 1), (0, 1), (1, 0), (0, 2)], 1, [1.0] * 4)
    assert won_shares(group) == [3 / 4, 1 / 3, 0]
    ranking, with_text = (batch_loss(made, [group], head, coef)[0].item() for coef in (0.0, 2.0))
    totals = [by_hand(language_model, s, 1) * (len(s) - 1) for s in group.sequences]
    expected = -(3 / 4 * totals[0] + 1 / 3 * totals[1]) / (3 / 4 * 2 + 1 / 3 * 3)
    assert with_text - ranking == pytest.approx(2 * expected, rel=1e-4)
