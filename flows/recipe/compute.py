"""Launch options of accelerate that the training stages support."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from alignment.bounded import read_bounded
from alignment.config.stages import ComputeConfig
from alignment.distributed import devices
from alignment.errors import ConfigError
from alignment.plain_yaml import LONGEST_BYTES, plain_yaml

DEFAULTS: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # accelerate's name for torchrun; with use_cpu the processes communicate over gloo
    "num_machines": 1,
    "machine_rank": 0,
    "gpu_ids": "all",
    "mixed_precision": "no",
    "main_training_function": "main",
}
SHARDED: dict[str, Any] = {
    "distributed_type": "FSDP",
    "fsdp_config": {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": False,
        "fsdp_activation_checkpointing": False,
    },
}
MACHINE = {  # how machines that share a launch file differ, as clusters set it for torchrun
    "machine_rank": ("NODE_RANK", int),
    "main_process_ip": ("MASTER_ADDR", str),
    "main_process_port": ("MASTER_PORT", int),
}


def check_compute(compute: ComputeConfig) -> None:
    """Raise ConfigError for a device or a precision that this machine does not have, or an unsupported launch file."""
    devices.check(compute)
    if compute.processes > 1:
        launch_options(compute)


def launch_options(compute: ComputeConfig) -> dict[str, Any]:
    """The options of `accelerate launch`. Raises ConfigError for a missing file or an unsupported option."""
    options: dict[str, Any] = DEFAULTS | _file_options(compute)
    if compute.shard and options["distributed_type"] != "FSDP":
        options |= SHARDED
    options |= {"num_processes": compute.processes}
    options.setdefault("use_cpu", devices.device_of(compute).type == "cpu")
    if options["num_machines"] != 1:
        options |= {name: kind(os.environ[key]) for name, (key, kind) in MACHINE.items() if key in os.environ}
    for problem in _problems(options, compute):
        raise ConfigError(f"compute.accelerate_config {compute.accelerate_config} {problem}")
    return options


def _file_options(compute: ComputeConfig) -> dict[str, Any]:
    """The options in the launch file."""
    if compute.accelerate_config is None:
        return {}
    path = Path(compute.accelerate_config)
    try:
        options = plain_yaml(read_bounded(path, LONGEST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"compute.accelerate_config {path} cannot be read ({error}); `accelerate config` writes such a file, "
            "and deploy/accelerate/cpu-2.yaml is one"
        ) from error
    if not isinstance(options, dict):
        raise ConfigError(f"compute.accelerate_config {path} holds no options; deploy/accelerate/cpu-2.yaml does")
    return options


def _problems(options: Mapping[str, Any], compute: ComputeConfig) -> Iterator[str]:
    """What of the launch options no stage can be started with."""
    device = devices.device_of(compute).type
    if options["distributed_type"] not in ("MULTI_GPU", "FSDP"):
        yield (
            f"has distributed_type: {options['distributed_type']}, but stages support MULTI_GPU (whole models in each "
            "process) and FSDP (sharded models); DeepSpeed is not supported"
        )
    if options["use_cpu"] != (device == "cpu"):
        yield (
            f"has use_cpu: {options['use_cpu']}, but compute.device '{compute.device}' is {device} here: remove "
            "use_cpu from the file, or set compute.device"
        )
    if options["mixed_precision"] != "no":
        yield f"has mixed_precision: {options['mixed_precision']}: remove it, and set compute.precision instead"
    machines = options["num_machines"]
    if not isinstance(machines, int) or machines < 1 or compute.processes % machines:
        yield f"has num_machines: {machines}, over which compute.processes {compute.processes} cannot be divided evenly"
    elif machines > 1 and not (options.get("main_process_ip") and options.get("main_process_port")):
        yield (
            f"has num_machines: {machines}, but says not where they meet: set main_process_ip and main_process_port "
            "there, or MASTER_ADDR and MASTER_PORT in the environment"
        )
    elif device == "cuda" and compute.processes // machines > devices.count_gpus():
        yield (
            f"and compute.processes {compute.processes} need {compute.processes // machines} GPUs on each machine, but "
            f"this one has {devices.count_gpus()}: lower compute.processes"
        )
