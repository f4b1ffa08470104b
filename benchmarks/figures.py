"""The report of a run, and figures of its process: memory, CPU time, and the work of an update."""

import json
import resource
import time
from dataclasses import asdict, dataclass

import psutil


@dataclass(frozen=True)
class Figures:
    """A run of a side. Seconds are wall-clock; `cpu_seconds` shows whether the run had its cores to itself."""

    system: str
    episodes: int
    response_tokens: int
    seconds: float
    cpu_seconds: float
    generate_seconds: float
    score_seconds: float
    update_seconds: float
    padding_share: float
    update_flops: float
    baseline_mib: float
    peak_mib: float

    def print(self) -> None:
        print(json.dumps(asdict(self)), flush=True)


class Clock:
    """Wall-clock and CPU seconds since its creation."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        return time.perf_counter() - self._wall

    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu


def resident_mib() -> float:
    """Memory that the process holds now."""
    return float(psutil.Process().memory_info().rss) / 2**20


def peak_mib() -> float:
    """The most memory that the process ever held (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def update_flops(config: object, prompt_tokens: int, response_tokens: int, episodes: int, epochs: int) -> float:
    """Least work of the updates of policy and value model, without padding, where backward is two forwards.

    `config` is that of a Llama. A weight of its blocks costs 2 a token, causal attention 2 · width · length a token and
    block (of the mean length), the policy's head is read at response tokens alone, and embeddings cost nothing.
    """
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    width, feed_forward, layers, vocabulary = (int(getattr(config, name)) for name in names)
    tokens = prompt_tokens + response_tokens
    weights = layers * (4 * width**2 + 3 * width * feed_forward)
    trunk = 2.0 * weights * tokens + 2.0 * layers * width * tokens**2 / episodes
    head = 2.0 * width * vocabulary * response_tokens
    return 3.0 * epochs * (2 * trunk + head)
