"""The trained state of a run: the weights that the layout trains, their optimizers and learning rates."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from alignment.distributed.sharding import Shards, split
from alignment.models.lora import adapter_weights, has_adapter
from alignment.ppo.config import PPOConfig
from alignment.ppo.schedule import learning_rate_share
from alignment.ppo.trunk import shares_trunk


@dataclass
class Learner:
    """The state that an update changes: weights of both models, optimizers, and the policy's average, if any."""

    policy: PreTrainedModel
    value_model: PreTrainedModel
    policy_weights: dict[str, nn.Parameter]
    value_weights: dict[str, nn.Parameter]
    policy_optimizer: AdamW
    value_optimizer: AdamW
    average: list[Tensor] | None
    shards: Shards | None  # of models that are sharded over processes

    @classmethod
    def of(cls, policy: PreTrainedModel, value_model: PreTrainedModel, config: PPOConfig) -> "Learner":
        """Optimizers over the weights that the layout trains, and the average, which starts at the policy's weights."""
        together = shares_trunk(policy, value_model)
        shards = split((policy, value_model)) if together else split((policy,), (value_model,))
        policy_weights, value_weights = trained_weights(policy, value_model)
        for model in (policy, value_model):
            model.eval()  # no dropout: old and new log-probabilities must come from the same function
            model.requires_grad_(False)
        for weight in (*policy_weights.values(), *value_weights.values()):
            weight.requires_grad_(True)
        return cls(
            policy,
            value_model,
            policy_weights,
            value_weights,
            _optimizer(policy_weights, config.policy_learning_rate, config),
            _optimizer(value_weights, config.value_learning_rate, config),
            None if config.ema_decay is None else [w.detach().clone() for w in policy_weights.values()],
            shards,
        )

    @property
    def shares_trunk(self) -> bool:
        """Whether a single forward yields log-probabilities and values."""
        return shares_trunk(self.policy, self.value_model)


def _optimizer(weights: dict[str, nn.Parameter], learning_rate: float, config: PPOConfig) -> AdamW:
    parameters = list(weights.values())
    return AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True)


def set_learning_rates(learner: Learner, config: PPOConfig, step: int) -> tuple[float, float]:
    """Set and return the learning rates (policy, value): a function of the step alone, without state."""
    trained, steps = step - config.value_warmup_steps, config.steps - config.value_warmup_steps
    share = learning_rate_share(
        max(0, trained), steps, config.warmup_steps, config.schedule, config.min_learning_rate_share
    )
    policy_rate = 0.0 if trained < 0 else config.policy_learning_rate * share
    value_share = learning_rate_share(step, config.steps, 0, config.schedule, config.min_learning_rate_share)
    value_rate = config.value_learning_rate * value_share
    for optimizer, rate in ((learner.policy_optimizer, policy_rate), (learner.value_optimizer, value_rate)):
        for group in optimizer.param_groups:
            group["lr"] = rate
    return policy_rate, value_rate


def trained_weights(
    policy: PreTrainedModel, value_model: PreTrainedModel
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The trained weights by name: the policy's, and those of the value model that it does not share."""
    policy_weights, value_weights = _learnt(policy), _learnt(value_model)
    shared = {id(weight) for weight in policy_weights.values()}
    return policy_weights, {name: weight for name, weight in value_weights.items() if id(weight) not in shared}


def _learnt(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return adapter_weights(model) if has_adapter(model) else dict(model.named_parameters())
