"""Processes that the kernel kills when their parent process ends, for any reason, including kill -9.

python -m alignment.distributed.parent_death PARENT COMMAND…   becomes COMMAND, tied to the process
PARENT, which must have started it; children of COMMAND can tie themselves to it, as its id is in the environment.
"""

import ctypes
import os
import signal
import sys

TIED_TO = "RLHF_TIED_TO"
PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Have this process killed when the thread of `parent` that started it ends; at once if it has ended already.

    Only Linux supports this. On other systems it is a no-op, and the parent must end its processes.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
    if os.getppid() != parent:
        sys.exit(f"the parent process {parent} has ended")


def main() -> None:
    """Tie this process to its parent and execute the command."""
    tie(int(sys.argv[1]))
    os.environ[TIED_TO] = str(os.getpid())
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
