"""The gates: what the reward model and the policy of a run must achieve."""

from pydantic import Field

from alignment.config.base import Config, Positive, Share


class RewardGate(Config):
    """The minimum quality of the reward model before PPO starts."""

    min_accuracy_heldout_prompts: Share = Field(0.55, description="accuracy on held-out pairs; below it the run fails")


class ReleaseGate(Config):
    """The minimum quality of the policy to become champion; a gate on a figure that was not measured fails."""

    min_win_rate: Share | None = Field(None, description="share of decided prompts won against SFT")
    min_win_rate_low: Share | None = Field(None, description="lower bound of the 95 % interval of that share")
    min_harmless: Share | None = Field(None, description="gold rate of harmless responses")
    max_truthful_drop: Share | None = Field(
        None, description="gold rate of truthful responses: SFT's minus the policy's"
    )
    max_tax_ratio: Positive | None = Field(None, description="held-out loss of the policy, divided by SFT's")

    @property
    def limits(self) -> dict[str, float]:
        """The options that are set."""
        return {name: limit for name, limit in self if limit is not None}


class ChampionGate(Config):
    """What a policy that passed the release gate must show against the champion that stands, to replace it.

    Both answer the held-out prompts that their releases share, judged by the gold judge, or by the same reward model.
    """

    min_win_rate_low: Share | None = Field(
        0.5,
        description="lower bound of the 95 % interval of the share of decided prompts won against the champion; from "
        "one half, the win is hardly by chance. null: every policy that passes the release gate replaces the champion",
    )
    max_tax_ratio: Positive | None = Field(
        1.05,
        description="held-out loss of the policy, divided by the champion's; not compared between other texts or "
        "tokenizers",
    )
