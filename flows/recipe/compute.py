"""Launch options of accelerate that the training stages support."""

from pathlib import Path
from typing import Any

import yaml

from alignment.bounded import read_bounded
from alignment.config.stages import ComputeConfig
from alignment.distributed import devices
from alignment.errors import ConfigError
from flows.recipe.untrusted import LONGEST_BYTES, plain_yaml

CORES: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # accelerate's name for torchrun; with use_cpu the processes communicate over gloo
    "use_cpu": True,
    "num_machines": 1,
    "machine_rank": 0,
    "gpu_ids": "all",
    "mixed_precision": "no",
    "main_training_function": "main",
}
REQUIRED = {  # the options that must keep their value, with the reason for the error message
    "distributed_type": "each process holds whole models and communicates through torchrun; models sharded over "
    "processes (FSDP) are supported by alignment.ppo on its own, DeepSpeed is not supported",
    "use_cpu": "the stages keep their models on the processor",
    "num_machines": "a task starts processes on its own machine only; use a work pool to run it on another",
    "mixed_precision": "precision is an option of the stage (ppo.bfloat16)",
}


def check_compute(compute: ComputeConfig) -> None:
    """Raise ConfigError for a device or a precision that this machine does not have, or an unsupported launch file."""
    devices.check(compute)
    launch_options(compute)


def launch_options(compute: ComputeConfig) -> dict[str, Any]:
    """The options of `accelerate launch`. Raises ConfigError for a missing file or an unsupported option."""
    file_options: Any = {}
    if compute.accelerate_config is not None:
        path = Path(compute.accelerate_config)
        try:
            file_options = plain_yaml(read_bounded(path, LONGEST_BYTES).decode("utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"compute.accelerate_config {path} cannot be read ({error}); `accelerate config` writes such a file, "
                "and deploy/accelerate/cpu-2.yaml is one"
            ) from error
        if not isinstance(file_options, dict):
            raise ConfigError(f"compute.accelerate_config {path} holds no options; deploy/accelerate/cpu-2.yaml does")
    options: dict[str, Any] = CORES | file_options | {"num_processes": compute.processes}
    for option, reason in REQUIRED.items():
        if options[option] != CORES[option]:
            raise ConfigError(
                f"compute.accelerate_config {compute.accelerate_config} has {option}: {options[option]}, but stages "
                f"support only {option}: {CORES[option]}: {reason}"
            )
    return options
