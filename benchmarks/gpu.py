"""The stages on a GPU: the same as on the CPU within a tolerance, and how fast and in how much memory.

    python -m benchmarks.gpu --out results            # all of it, fifteen minutes at most
    python -m benchmarks.gpu --out results --device cpu --parts compare    # a rehearsal where there is no GPU

Needs torch, transformers, accelerate, peft, trl, datasets, loky and pydantic; no server. Parts, each in processes
of its own with a time limit, so that a failure or a hang does not affect the others:

    compare   every function and stage on a model of 0.1 M weights, on the CPU and on the device, with the same inputs
    measure   every stage on a Llama of 0.5 B random weights: seconds, tokens a second, peak memory
    tests     the tests of `alignment` that need no server, on this machine's processor

Results go to `results.json` and, as a table, to `results.md`, which is printed too.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_world import SIZES, make_world, read_json
from benchmarks.machine import processor

ROOT = Path(__file__).parent.parent
PARTS = ("compare", "measure", "tests")
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers")
TOLERANCE = 2e-3  # of the size of a figure: single precision, summed in another order over a few optimizer steps
FLOOR = 1e-3  # figures below this count as this large
SECONDS = {"compare": 240, "measure": 450, "tests": 220}  # at most
GIB = 2**30
Results = dict[str, dict[str, Any]]


def main() -> None:
    """Run the parts that were asked for, and write and print what came of them."""
    parser = argparse.ArgumentParser(description="the stages on a GPU: the same as on the CPU, and how fast")
    parser.add_argument("--out", type=Path, required=True, help="a folder for results.json, results.md and logs")
    parser.add_argument("--work", type=Path, default=Path("/tmp/rlhf-gpu"), help="a folder for models: 30 GB")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of what is measured")
    parser.add_argument("--size", choices=tuple(SIZES), default="half", help="of the model that is measured")
    parser.add_argument("--only", help="run stages and functions with this in their name alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": machine(options.device)}
    for part, work in (("compare", compare), ("measure", measure), ("tests", run_tests)):
        if part in options.parts:
            start = time.perf_counter()
            try:
                content[part] = work(options)
            except Exception as error:
                content[part] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        (options.out / "results.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        (options.out / "results.md").write_text(markdown(content), encoding="utf-8")
    print(markdown(content))


def machine(device: str) -> dict[str, object]:
    """Card, processor and versions."""
    card = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        "card": card.name if card else "none",
        "card_memory_gib": round(card.total_memory / GIB, 1) if card else 0,
        "cuda": str(torch.version.cuda),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16_of_processor": [name for name, on in torch.cpu.get_capabilities().items() if on and "bf16" in name],
        "versions": {"python": platform.python_version(), **dict(installed())},
    }


def installed() -> Iterator[tuple[str, str]]:
    """Versions of the packages that do the work; those that are missing are left out."""
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


# --- parts ------------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> Results:
    """Both devices at the same time, each in a process, and how far their results are apart."""
    world = make_world(options.work / "tiny", SIZES["tiny"])
    devices = dict.fromkeys(("cpu", options.device))
    running = {device: _start(options, "compare", "tiny", world, device) for device in devices}
    ended = {device: _wait(process, SECONDS["compare"]) for device, (process, _) in running.items()}
    cpu, other = (read_json(running[device][1]) for device in ("cpu", options.device))
    results: Results = {"exit codes": ended}
    return results | {name: compared(cpu.get(name), other.get(name)) for name in dict.fromkeys([*cpu, *other])}


def measure(options: argparse.Namespace) -> Results:
    """Each stage on the device, by itself."""
    world = make_world(options.work / options.size, SIZES[options.size])
    process, file = _start(options, "measure", options.size, world, options.device)
    code = _wait(process, SECONDS["measure"])
    return {"exit codes": {options.device: code}, **read_json(file)}


def run_tests(options: argparse.Namespace) -> Results:
    """Tests that need neither servers nor Prefect, on the processor. Without conftest.py, which imports those."""
    command = [sys.executable, "-m", "pytest", "tests/formulas", "tests/alignment", "-q", "--noconftest"]
    command += ["-p", "no:cacheprovider", "-n", str(min(12, os.cpu_count() or 1)), "--dist", "loadfile"]
    log = options.out / "tests.log"
    with log.open("wb") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        code = _wait(process, SECONDS["tests"])
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"pytest": {"exit code": code, "last line": lines[-1] if lines else "", "failed": failed}}


def _start(
    options: argparse.Namespace, part: str, size: str, world: Path, device: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """A process with its own log and its own file of results."""
    name = f"{part}-{device}"
    file = options.work / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_work", part, "--size", size, "--world", str(world)]
    command += ["--out", str(file), "--scratch", str(options.work / f"scratch-{name}")]
    command += ["--device", device, "--precision", options.precision if part == "measure" else "float32"]
    command += ["--only", options.only] if options.only else []
    environment = os.environ | {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with (options.out / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT), file


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit code; None where it was ended because its time was up."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


# --- comparison -------------------------------------------------------------------------------------------------------


def compared(cpu: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any]:
    """The largest distance of two results, or the reason why there is none."""
    for device, result in (("cpu", cpu), ("device", other)):
        if result is None or "error" in result:
            return {"verdict": "failed", "error": f"on {device}: {(result or {}).get('error', 'did not start')}"}
    assert cpu is not None and other is not None
    if not cpu.get("same", True):
        return {"verdict": "runs" if all(map(math.isfinite, numbers(other["figures"]))) else "not finite"}
    names = ("figures", "weights") if "figures" in cpu else tuple(cpu)
    apart = {
        name: (largest_distance if name == "figures" else distance)(numbers(cpu[name]), numbers(other[name]))
        for name in names
    }
    return {"verdict": "same" if max(apart.values()) <= TOLERANCE else "differs", "apart": apart}


def distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """‖a − b‖ / ‖a‖; infinite if counts differ or a value is NaN."""
    if len(ours) != len(theirs):
        return math.inf
    apart = math.dist(ours, theirs) / max(math.hypot(*ours), FLOOR)
    return math.inf if math.isnan(apart) else apart


def largest_distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """max |a − b| / max(|a|, FLOOR), for figures of different scale; infinite if only one of them is NaN."""
    if len(ours) != len(theirs):
        return math.inf
    return max((_apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _apart(a: float, b: float) -> float:
    if math.isnan(a) and math.isnan(b):
        return 0.0
    apart = abs(a - b) / max(abs(a), FLOOR)
    return math.inf if math.isnan(apart) else apart


def numbers(value: Any) -> list[float]:
    """All numbers of a nest of dicts and lists, in order of the keys."""
    if isinstance(value, Mapping):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number for part in value for number in numbers(part)]
    return [float(value)]


# --- report -----------------------------------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    """The tables that go into docs/gpu.md."""
    facts = content["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines = [f"{facts['card']} ({facts['card_memory_gib']} GiB), CUDA {facts['cuda']}; {facts['processor']}, "]
    lines[0] += f"{facts['cores']} cores; {versions}"
    tables: tuple[tuple[str, Callable[[Results], list[str]]], ...] = (
        ("compare", _comparison),
        ("measure", _measurements),
        ("tests", _tests),
    )
    for part, table in tables:
        if part in content:
            results = content[part]
            lines += [
                "",
                f"## {part}",
                "",
                *([results["error"]] if isinstance(results.get("error"), str) else table(results)),
            ]
    return "\n".join(lines) + "\n"


def _comparison(results: Results) -> list[str]:
    lines = [f"exit codes {results['exit codes']}", "", "| function or stage | verdict | apart |", "|---|---|---|"]
    for name, result in results.items():
        if name != "exit codes":
            apart = ", ".join(f"{key} {value:.1e}" for key, value in result.get("apart", {}).items())
            lines.append(f"| {name} | {result['verdict']} | {apart or _last_line(result)} |")
    return lines


def _measurements(results: Results) -> list[str]:
    lines = [f"exit codes {results['exit codes']}", ""]
    lines += ["| stage | seconds | s a step | tokens/s | peak GiB | left MiB |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        if name == "exit codes":
            continue
        if "error" in result:
            lines.append(f"| {name} | failed: {_last_line(result)} | | | | |")
            continue
        step, rate = result.get("step_seconds"), result.get("tokens_per_second")
        cells = [
            f"{result['seconds']:.1f}",
            "" if step is None else f"{step:.2f}",
            "" if rate is None else f"{rate:,.0f}",
        ]
        cells += [f"{result.get('peak_bytes', 0) / GIB:.1f}", f"{result.get('left_bytes', 0) / 2**20:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _tests(results: Results) -> list[str]:
    result = results["pytest"]
    return [f"exit code {result['exit code']}: {result['last line']}", "", *(f"- {line}" for line in result["failed"])]


def _last_line(result: Mapping[str, Any]) -> str:
    lines = str(result.get("error", "")).strip().splitlines()
    return lines[-1].replace("|", "/") if lines else ""


if __name__ == "__main__":
    main()
