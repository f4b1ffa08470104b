"""Mutation tests: a changed sign, index, clip side or mask in the source must fail the check of that formula."""

import pytest

from tests.formulas import test_accumulation as accumulation
from tests.formulas import test_advantages as advantages
from tests.formulas import test_bandit as bandit
from tests.formulas import test_ensemble as ensemble
from tests.formulas import test_importance as importance
from tests.formulas import test_indexing as indexing
from tests.formulas import test_kl as kl
from tests.formulas import test_layouts as layouts
from tests.formulas import test_losses as losses
from tests.formulas import test_overoptimization as overoptimization
from tests.formulas import test_preference as preference
from tests.formulas import test_selection as selection
from tests.formulas import test_shaping as shaping
from tests.formulas import test_shares as shares
from tests.formulas.models import module, mutant

MUTANTS = [
    # generalized advantage estimation
    (
        "ppo.advantages",
        "gamma * next_value - masked_values[:, t]",
        "gamma * next_value + masked_values[:, t]",
        advantages.check_by_hand,
    ),
    (
        "ppo.advantages",
        "gamma * next_value - masked_values[:, t]",
        "next_value - masked_values[:, t]",
        advantages.check_naive_sum,
    ),
    ("ppo.advantages", "gamma * gae_lambda * next_advantage", "gamma * next_advantage", advantages.check_by_hand),
    (
        "ppo.advantages",
        "gamma * gae_lambda * next_advantage",
        "gae_lambda * next_advantage",
        advantages.check_naive_sum,
    ),
    ("ppo.advantages", "in reversed(range(values.shape[1]))", "in range(values.shape[1])", advantages.check_by_hand),
    ("ppo.advantages", "advantages + masked_values, 0", "advantages - masked_values, 0", advantages.check_by_hand),
    (
        "ppo.advantages",
        "masked_values = torch.where(response_mask, values, 0)",
        "masked_values = values",
        advantages.check_padding,
    ),
    (
        "ppo.advantages",
        "torch.where(response_mask[:, t], delta + gamma * gae_lambda * next_advantage, 0)",
        "delta + gamma * gae_lambda * next_advantage",
        advantages.check_padding,
    ),
    # whitening and explained variance
    ("ppo.advantages", "shifted = x - mean if", "shifted = x + mean if", advantages.check_whitening),
    (
        "ppo.advantages",
        "torch.rsqrt(variance + epsilon)",
        "torch.reciprocal(variance + epsilon)",
        advantages.check_whitening,
    ),
    ("ppo.advantages", "mean = masked_mean(x, response_mask)", "mean = x.mean()", advantages.check_whitening),
    ("ppo.advantages", "1.0 - float(error", "1.0 + float(error", advantages.check_explained_variance),
    # losses
    ("ppo.losses", "return -torch.minimum(ratio", "return torch.minimum(ratio", losses.check_surrogate_by_hand),
    ("ppo.losses", "return -torch.minimum(ratio", "return -torch.maximum(ratio", losses.check_surrogate_by_hand),
    ("ppo.losses", "1 - clip_range, 1 + clip_range", "1 - clip_range, 9", losses.check_surrogate_by_hand),
    ("ppo.losses", "1 - clip_range, 1 + clip_range", "0, 1 + clip_range", losses.check_surrogate_by_hand),
    (
        "ppo.losses",
        "torch.exp(logprobs - old_logprobs)",
        "torch.exp(old_logprobs - logprobs)",
        losses.check_on_policy_gradient,
    ),
    ("ppo.losses", "torch.maximum(squared, (clipped", "torch.minimum(squared, (clipped", losses.check_value_by_hand),
    ("ppo.losses", "clipped = old_values + torch", "clipped = values + torch", losses.check_value_by_hand),
    (
        "ppo.losses",
        "values - old_values, -clip_range, clip_range",
        "values - old_values, -9, clip_range",
        losses.check_numpy_reference,
    ),
    ("ppo.losses", "return 0.5 * squared", "return squared", losses.check_value_by_hand),
    ("ppo.losses", "/ mask.sum()", "/ mask.numel()", losses.check_masked_mean),
    ("ppo.losses", "torch.where(mask, x, 0).sum()", "x.sum()", losses.check_masked_mean),
    # KL
    (
        "ppo.kl",
        "log_ratio = reference_logprobs - logprobs",
        "log_ratio = logprobs - reference_logprobs",
        kl.check_expectation,
    ),
    ("ppo.kl", "return -log_ratio", "return log_ratio", kl.check_expectation),
    (
        "ppo.kl",
        "torch.expm1(log_ratio) - log_ratio",
        "torch.expm1(log_ratio) + log_ratio",
        kl.check_k3_is_never_negative,
    ),
    ("ppo.kl", "torch.expm1(log_ratio)", "torch.exp(log_ratio)", kl.check_k3_is_never_negative),
    ("ppo.kl", "(kl - target) / target", "(target - kl) / target", kl.check_controller),
    ("ppo.kl", "-0.2), 0.2)", "-0.2), 9)", kl.check_controller),
    ("ppo.kl", "-0.2), 0.2)", "-9), 0.2)", kl.check_controller),
    ("ppo.kl", "1 + gain * error", "1 - gain * error", kl.check_controller),
    # shaping
    ("ppo.shaping", "-kl_coef * kl", "kl_coef * kl", shaping.check_token_rewards),
    (
        "ppo.shaping",
        "last = response_mask.sum(-1) - 1",
        "last = response_mask.sum(-1) % 4",
        shaping.check_token_rewards,
    ),
    (
        "ppo.shaping",
        "last = response_mask.sum(-1) - 1",
        "last = response_mask.sum(-1) * 0",
        shaping.check_token_rewards,
    ),
    ("ppo.shaping", "torch.where(response_mask, -kl_coef * kl, 0)", "-kl_coef * kl", shaping.check_token_rewards),
    (
        "ppo.shaping",
        "torch.where(ended, scores, unfinished)",
        "torch.where(ended, unfinished, scores)",
        shaping.check_missing_eos,
    ),
    ("ppo.shaping", "scores - penalty if", "scores + penalty if", shaping.check_missing_eos),
    ("ppo.shaping", "full_like(scores, -penalty)", "full_like(scores, penalty)", shaping.check_missing_eos),
    ("ppo.shaping", "scores - penalty * lengths", "scores + penalty * lengths", shaping.check_length_and_clip),
    (
        "ppo.shaping",
        "torch.clamp(scores, -limit, limit)",
        "torch.clamp(scores, max=limit)",
        shaping.check_length_and_clip,
    ),
    # which logit speaks for which token
    (
        "models.logprobs",
        "position = prompts[row] + time - 1",
        "position = prompts[row] + time - 2",
        indexing.check_enumeration,
    ),
    (
        "models.logprobs",
        "targets=tokens[row, position + 1]",
        "targets=tokens[row, position]",
        indexing.check_enumeration,
    ),
    (
        "models.logprobs",
        "(lengths.cumsum(0) - lengths)[row]",
        "lengths.cumsum(0)[row]",
        indexing.check_one_sequence_at_a_time,
    ),
    (
        "models.logprobs",
        "-functional.cross_entropy(logits / temperature",
        "-functional.cross_entropy(logits",
        indexing.check_one_sequence_at_a_time,
    ),
    (
        "models.heads",
        "log_softmax(at_least_float32(logits) / temperature, dim=-1)",
        "log_softmax(at_least_float32(logits), dim=-1)",
        indexing.check_logprobs_and_entropy,
    ),
    (
        "models.heads",
        "-(logs.exp() * logs).sum(-1)",
        "(logs.exp() * logs).sum(-1)",
        indexing.check_logprobs_and_entropy,
    ),
    ("models.logprobs", "(-lengths[i], i)", "i", indexing.check_micro_batches),
    ("models.generation", "self.position = lengths - 1 ", "self.position = lengths ", indexing.check_sampling),
    ("models.generation", "columns >= longest - lengths", "columns >= 0 * lengths", indexing.check_sampling),
    (
        "models.generation",
        "logits if temperature in (0, 1) else logits / temperature",
        "logits",
        indexing.check_sampling,
    ),
    (
        "models.generation",
        "self.cache.reorder_cache(index)",
        "self.cache.reorder_cache(index.flip(0))",
        indexing.check_sampling,
    ),
    ("models.generation", "return tokens[index]", "return tokens[: len(index)]", indexing.check_sampling),
    (
        "ppo.values",
        "hidden[batch.row, batch.position])\n\n\ndef policy",
        "hidden[batch.row, batch.position + 1])\n\n\ndef policy",
        indexing.check_values,
    ),
    (
        "ppo.values",
        "return normalised(value_model, head_values(value_model, hidden))",
        "return head_values(value_model, hidden)",
        indexing.check_values,
    ),
    # one mean over the minibatch
    (
        "ppo.update",
        "config.entropy_coef * entropy).sum()",
        "config.entropy_coef * entropy).mean()",
        accumulation.check_accumulation,
    ),
    ("ppo.update", "return loss.sum()", "return loss.mean()", accumulation.check_accumulation),
    (
        "ppo.update",
        "batch, config, loss_sums) / tokens",
        "batch, config, loss_sums) / batch.real_tokens",
        accumulation.check_accumulation,
    ),
    ("ppo.update", "policy_loss + config.value_coef *", "policy_loss +", layouts.check_shared_trunk_gradient),
    (
        "ppo.update",
        "policy_loss + config.value_coef *",
        "policy_loss - config.value_coef *",
        layouts.check_shared_trunk_gradient,
    ),
    (
        "ppo.values",
        "append(output.last_hidden_state[batch.row, batch.position])",
        "append(output.last_hidden_state[batch.row, batch.position + 1])",
        layouts.check_one_pass,
    ),
    (
        "ppo.update",
        "response_logprobs(policy, batch).sum() / tokens",
        "response_logprobs(policy, batch).mean()",
        accumulation.check_accumulation,
    ),
    ("ppo.update", "old, rollout.advantages[at]", "old, rollout.returns[at]", accumulation.check_minibatch_mean),
    (
        "ppo.update",
        "rollout.values[at], rollout.returns[at]",
        "rollout.returns[at], rollout.values[at]",
        accumulation.check_minibatch_mean,
    ),
    # importance weights of another engine's samples
    ("ppo.importance", "torch.exp(logprobs - s", "torch.exp(-logprobs + s", importance.check_by_hand),
    ("ppo.importance", ".clamp(max=truncation)", ".clamp(min=truncation)", importance.check_by_hand),
    ("ppo.importance", ".clamp(max=truncation)", "", importance.check_expectation),
    ("ppo.importance", "kl_estimate(sampler, learner", "kl_estimate(learner, sampler", importance.check_mismatch),
    (
        "ppo.importance",
        "ratio = torch.exp(learner - sampler)",
        "ratio = torch.exp(sampler - learner)",
        importance.check_mismatch,
    ),
    (
        "ppo.importance",
        "logprobs[mask].double(), sampler_logprobs[mask].double()",
        "logprobs.double(), sampler_logprobs.double()",
        importance.check_mismatch,
    ),
    ("ppo.importance", "(ratio > truncation)", "(ratio < truncation)", importance.check_mismatch),
    ("ppo.update", "rollout.weights[at] * clipped", "clipped", accumulation.check_minibatch_mean),
    ("ppo.shares", "[part.sampler_logprobs for", "[part.logprobs for", shares.check_whitening_over_shares),
    # shares of several processes
    (
        "ppo.update",
        "micro_batches(episodes, config, device, mine)",
        "micro_batches(episodes, config, device, rows)",
        accumulation.check_shares,
    ),
    (
        "ppo.update",
        "torch.tensor(rows, device=device)",
        "torch.tensor(share_of(rows), device=device, dtype=int)",
        accumulation.check_shares,
    ),
    ("ppo.update", "mine = share_of(drawn)", "mine = drawn", accumulation.check_shares),
    ("ppo.update", 'sums["tokens"] = shares[0]["tokens"]', "pass", accumulation.check_shares),
    (
        "ppo.update",
        'max(share.get("largest_log_ratio", 0.0)',
        'sum(share.get("largest_log_ratio", 0.0)',
        accumulation.check_shares,
    ),
    (
        "ppo.shares",
        "values=_rows([share.values for share in shares])",
        "values=torch.cat([functional.pad(s.values, (0, 7 - s.values.shape[1])) for s in shares])",
        shares.check_whitening_over_shares,
    ),
    (
        "ppo.shares",
        "functional.pad(share, (0, longest - share.shape[1]))",
        "functional.pad(share, (longest - share.shape[1], 0))",
        shares.check_whitening_over_shares,
    ),
    (
        "distributed.collectives",
        "rows[number :: len(shares)] = share",
        "rows[: len(share)] = share",
        shares.check_order,
    ),
    # sampling by given numbers
    ("models.generation", "* cumulative[:, -1:], right=True)", ", right=True)", indexing.check_quantile),
    ("models.generation", "* ends[:, -1:] - start)", "* ends[:, -1:])", indexing.check_large_vocabulary),
    ("models.generation", "* BLOCK + token", "+ token", indexing.check_large_vocabulary),
    ("models.generation", "ends.gather(-1, (block - 1)", "ends.gather(-1, block", indexing.check_large_vocabulary),
    ("models.generation", "/ inside[:, -1:]", "/ ends[:, -1:]", indexing.check_large_vocabulary),
    # the cache
    ("models.cache", ".copy_(new)", ".copy_(new.flip(2))", indexing.check_cache),
    ("models.cache", ".index_select(0, beam_idx))", "[: len(beam_idx)])", indexing.check_cache),
    ("models.cache", "new.shape[0], after + SPARE_COLUMNS, old)", "new.shape[0], after, None)", indexing.check_cache),
    (
        "models.generation",
        "cumulative[:, -1:], right=True)",
        "cumulative[:, -1:], right=False)",
        indexing.check_quantile,
    ),
    (
        "models.generation",
        "self.uniforms is None else self.uniforms[index]",
        "self.uniforms is None else self.uniforms[: len(index)]",
        indexing.check_own_numbers,
    ),
    (
        "models.generation",
        "uniforms[rows].to(model.device)",
        "uniforms[: len(rows)].to(model.device)",
        indexing.check_own_numbers,
    ),
    # Bradley-Terry
    (
        "reward_model.loss",
        "scores[pairs[:, 0]] - scores[pairs[:, 1]]",
        "scores[pairs[:, 1]] - scores[pairs[:, 0]]",
        preference.check_by_hand,
    ),
    ("reward_model.loss", "difference - margins", "difference + margins", preference.check_weights_and_margins),
    ("reward_model.loss", "/ weight.sum()\n", "/ len(weight)\n", preference.check_weights_and_margins),
    ("reward_model.loss", "margins.to(scores) * (1 - tie)", "margins.to(scores)", preference.check_ties),
    (
        "reward_model.loss",
        "tie / 2 * functional.logsigmoid(-difference)",
        "tie / 2 * functional.logsigmoid(difference)",
        preference.check_ties,
    ),
    ("reward_model.loss", "-(weight * log_likelihood)", "(weight * log_likelihood)", preference.check_recovery),
    # ensembles of reward models
    ("models.ensembles", "scores.min(0)", "scores.max(0)", ensemble.check_by_hand),
    ("models.ensembles", "mean - coef * scores", "mean + coef * scores", ensemble.check_by_hand),
    (
        "models.ensembles",
        "mean - coef * scores.var(0, correction=0)",
        "mean - coef * scores.std(0, correction=0)",
        ensemble.check_by_hand,
    ),
    ("models.ensembles", "scores.var(0, correction=0)", "scores.var(0)", ensemble.check_by_hand),
    # gold against proxy
    (
        "evaluation.overoptimization",
        "torch.stack([d, -d * d.log()]",
        "torch.stack([d, d * d.log()]",
        overoptimization.check_recovery,
    ),
    (
        "evaluation.overoptimization",
        "torch.stack([d, -d * d.log()]",
        "torch.stack([d, -d * d]",
        overoptimization.check_recovery,
    ),
    (
        "evaluation.overoptimization",
        "(math.sqrt(distance), reward)",
        "(distance, reward)",
        overoptimization.check_recovery,
    ),
    (
        "evaluation.overoptimization",
        "math.exp(self.alpha / self.beta - 1)",
        "math.exp(self.alpha / self.beta)",
        overoptimization.check_recovery,
    ),
    ("evaluation.overoptimization", ".pow(2).mean().sqrt()", ".pow(2).mean()", overoptimization.check_residual),
    (
        "evaluation.overoptimization",
        "math.comb(rank, n - 1)",
        "math.comb(rank + 1, n - 1)",
        overoptimization.check_best_of_n,
    ),
    (
        "evaluation.overoptimization",
        "key=lambda i: proxy[i]",
        "key=lambda i: -proxy[i]",
        overoptimization.check_best_of_n,
    ),
    (
        "evaluation.overoptimization",
        "math.log(n) - (n - 1) / n",
        "math.log(n) - (n - 1)",
        overoptimization.check_distance,
    ),
    # the choice of a snapshot
    (
        "methods.selection",
        "rewards[best].double() - rewards.double()",
        "rewards.double() - rewards[best].double()",
        selection.check_by_hand,
    ),
    ("methods.selection", "/ math.sqrt(rewards.shape[1])", "", selection.check_by_hand),
    ("methods.selection", "lacks[i].mean() <= errors[i]", "lacks[i].mean() <= 0", selection.check_within_the_error),
    ("methods.selection", "step=steps[good[0]]", "step=steps[good[-1]]", selection.check_within_the_error),
    ("methods.selection", "means.argmax()", "means.argmin()", selection.check_by_hand),
]

IN_THE_BANDIT = [
    ("ppo.shaping", "-kl_coef * kl", "kl_coef * kl"),
    ("ppo.kl", "return -log_ratio", "return 0.5 * -log_ratio"),
    ("ppo.losses", "return -torch.minimum(ratio", "return torch.minimum(ratio"),
]


@pytest.mark.parametrize(("name", "old", "new", "check"), MUTANTS)
def test_a_changed_formula_is_noticed(name: str, old: str, new: str, check) -> None:
    check(module(name))
    changed = mutant(module(name), old, new)
    with pytest.raises((AssertionError, IndexError)):
        check(changed)


@pytest.mark.parametrize(("name", "old", "new"), IN_THE_BANDIT)
def test_a_changed_formula_moves_the_optimum(name: str, old: str, new: str) -> None:
    changed = mutant(module(name), old, new)
    with pytest.raises(AssertionError):
        bandit.check_closed_form(bandit.MODULES | {name: changed})
