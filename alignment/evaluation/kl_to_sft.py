"""The policy's KL divergence from SFT."""

from statistics import fmean

from alignment.evaluation.bench import Bench, Figures, Models


def measure_kl_to_sft(bench: Bench, models: Models) -> Figures:
    """`kl_to_sft`: estimate of KL(π ‖ π_SFT) in nats per response, the mean log-ratio over the policy's own samples."""
    return Figures({"kl_to_sft": fmean(response.kl for response in bench.responses(models.policy))})
