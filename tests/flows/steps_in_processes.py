"""What `accelerate launch` starts in test_accelerate.py: several steps in turn, to pay for the imports once.

python -m tests.flows.steps_in_processes DIRECTORY… with a `step.json` in each.
"""

import sys
from pathlib import Path

import torch

from alignment.stages import read_step
from alignment.worker import STEP, connect, perform

if __name__ == "__main__":
    torch.set_num_threads(1)
    step, _ = read_step((Path(sys.argv[1]) / STEP).read_text(encoding="utf-8"))
    state = connect(step.compute)
    for place in sys.argv[1:]:
        perform(Path(place))
    state.destroy_process_group()
