"""What the figures were measured on: processor, versions, and the matrix rate that a run is held against."""

import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional

PACKAGES = ("torch", "transformers", "trl")
ROWS = 1024


def matrix_rate(hidden_size: int = 256, feed_forward: int = 688, repeats: int = 40) -> float:
    """FLOP/s of the feed-forward network's product in single precision, on the threads that torch has now."""
    x, weight = torch.randn(ROWS, hidden_size), torch.randn(feed_forward, hidden_size)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        functional.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return 2.0 * ROWS * hidden_size * feed_forward / median(seconds)


def processor() -> str:
    """The processor's name as the kernel tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and the packages that do the work, in this environment."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
