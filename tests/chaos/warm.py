"""A process that has imported what a pipeline needs and forks into one for each line that it reads.

A pipeline that is killed a hundred times spends ten seconds a time on imports; like this it spends one. The child is a
process group of its own and writes its exit code beside its log: one that was killed can be told from one that ended.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

IMPORTED = (
    "mlflow",
    "prefect",
    "torch",
    "transformers",
    "trl",
    "flows.cli.main",
    "flows.pipeline.flow",
    "flows.annotation.collect",
    "alignment.methods.ppo",
    "alignment.evaluation.run",
    "alignment.reward_model.train",
    "alignment.training.sft",
    "alignment.models.tokenizer",
    "labeling.reports.figures",
)


def main(log: Path, arguments: list[str]) -> None:
    """Read lines, fork a child for each, and print its process id."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    print("ready", flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            become_pipeline(log, arguments)
        os.setpgid(child, child)
        print(child, flush=True)


def become_pipeline(log: Path, arguments: list[str]) -> None:
    """Run the command `rlhf` with its output in `log`, as it does in a process of its own. Does not return."""
    from flows.cli.main import main as rlhf

    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    code: object = 1
    try:
        sys.argv = ["rlhf", *arguments]
        rlhf()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    log.with_suffix(".code").write_text(str(code))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
