"""Options of a rollout's engine: what samples the responses, and how its difference to the learner is corrected."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, SerializationInfo, model_serializer, model_validator

from alignment.config.base import Config, Count, Positive

WHOLE = {"whole": True}  # the serialization context in which options that change no result are dumped too
OF_A_SERVER = ("url", "requests", "timeout_seconds", "patience_seconds")


class RolloutConfig(Config):
    """The engine that samples responses, and the importance weights of what another engine than `native` sampled."""

    engine: Literal["native", "transformers", "vllm"] = Field(
        "native", description="native: this project's sampler; transformers: its `generate`; vllm: a server of vLLM"
    )
    correct: bool = Field(
        True, description="weigh each token's policy loss by min(π / π_engine, truncation); 1 with native"
    )
    truncation: Positive = Field(2.0, description="C, the largest importance weight of a token")

    # of a vLLM server; where it is and how it is asked changes no result, and is no part of a stage's key
    url: str = Field(
        "", description="vllm: address of the server, as in http://localhost:8000; empty: RLHF_VLLM_URL says it"
    )
    requests: Count = Field(64, description="vllm: requests at a time, one for each response")
    timeout_seconds: Positive = Field(600, description="vllm: the longest time for one request")
    patience_seconds: Positive = Field(
        300, description="vllm: how long to wait for a server that is away or reports an internal error"
    )

    @model_validator(mode="after")
    def _options_of_the_engine(self) -> "RolloutConfig":
        unused = [name for name in OF_A_SERVER if self.engine != "vllm" and self._is_set(name)]
        unused += [name for name in ("correct", "truncation") if self.engine == "native" and self._is_set(name)]
        if unused:
            raise ValueError(f"{unused[0]} has no effect with engine {self.engine}: remove it, or set another engine")
        if self._is_set("truncation") and not self.correct:
            raise ValueError("truncation has no effect where correct is false: remove one of them")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @model_serializer(mode="wrap")
    def _without_the_server(
        self, dump: Callable[["RolloutConfig"], dict[str, Any]], info: SerializationInfo
    ) -> dict[str, Any]:
        values = dump(self)
        return values if info.context == WHOLE else {k: v for k, v in values.items() if k not in OF_A_SERVER}
