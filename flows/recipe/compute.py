"""Which launch files of accelerate the training stages can be started with."""

from pathlib import Path
from typing import Any

import yaml

from alignment.config.stages import ComputeConfig
from alignment.errors import ConfigError

CORES: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # accelerate's word for torchrun; use_cpu makes the processes talk through gloo
    "use_cpu": True,
    "num_machines": 1,
    "machine_rank": 0,
    "gpu_ids": "all",
    "mixed_precision": "no",
    "main_training_function": "main",
}
REQUIRED = {  # what the stages can do, and what to say of a launch file that asks for something else
    "distributed_type": "each process holds whole models and talks to the others through torchrun; models split over "
    "processes (FSDP) are for alignment.ppo by itself, DeepSpeed is for nothing here",
    "use_cpu": "the stages keep their models on the processor",
    "num_machines": "a task starts processes on its own machine alone; a work pool is what brings it to another",
    "mixed_precision": "the options of a stage say in which precision it works (ppo.bfloat16)",
}


def launch_options(compute: ComputeConfig) -> dict[str, Any]:
    """What accelerate is told. Raises ConfigError for a file that is not there, or asks for what no stage can do."""
    given: Any = {}
    if compute.accelerate_config is not None:
        path = Path(compute.accelerate_config)
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"compute.accelerate_config {path} cannot be read ({error}); `accelerate config` writes such a file, "
                "and deploy/accelerate/cpu-2.yaml is one"
            ) from error
        if not isinstance(given, dict):
            raise ConfigError(f"compute.accelerate_config {path} holds no options; deploy/accelerate/cpu-2.yaml does")
    told: dict[str, Any] = CORES | given | {"num_processes": compute.processes}
    for option, reason in REQUIRED.items():
        if told[option] != CORES[option]:
            raise ConfigError(
                f"compute.accelerate_config {compute.accelerate_config} has {option}: {told[option]}, and stages run "
                f"with {option}: {CORES[option]} alone: {reason}"
            )
    return told
