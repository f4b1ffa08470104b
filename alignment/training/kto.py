"""TRL's KTO trainer in micro-batches, with the KL estimate z0 of the whole batch."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from trl import KTOTrainer
from trl.trainer.utils import use_adapter

from alignment.training.trl import WeightedByRows


class WholeBatchKTO(WeightedByRows, KTOTrainer):
    """Estimates z0 over all micro-batches of a step before the first, since the loss is not a sum over rows with it."""

    _z0: Tensor | None = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step; z0 is that of all their rows."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._z0 = None
        if len(samples) > 1:
            self._z0 = torch.cat([self._log_ratios(sample) for sample in samples]).mean(0, keepdim=True)
        return samples, items

    @torch.no_grad()
    def _log_ratios(self, sample: dict[str, Any]) -> Tensor:
        """log π/π_ref of the answers of other rows. Shape: (rows,)."""
        batch = {name: value.to(self.args.device) for name, value in sample.items() if isinstance(value, Tensor)}
        model: Any = self.model
        model.train()  # as in the step
        logps: Tensor = super()._compute_kl_logps(model, batch)
        with nullcontext() if self.ref_model is not None else use_adapter(model, adapter_name=None):
            reference: Tensor = super()._compute_kl_logps(self.ref_model or model, batch)
        return logps - reference

    def _compute_kl_logps(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The two terms whose difference is z0; the trainer asks for the reference's without gradients."""
        if self._z0 is None:
            logps: Tensor = super()._compute_kl_logps(model, batch)
            return logps
        return self._z0 if torch.is_grad_enabled() else torch.zeros_like(self._z0)
