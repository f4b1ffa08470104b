"""Processes that end with the one that started them, however that ended, kill -9 too: the kernel sees to it.

python -m alignment.distributed.parent_death PARENT COMMAND…   becomes COMMAND, tied to the process
PARENT, which must have started it; what COMMAND starts can tie itself to COMMAND, whose id it finds in the environment.
"""

import ctypes
import os
import signal
import sys

TIED_TO = "RLHF_TIED_TO"
PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Have this process killed when the thread of `parent` that started it ends; at once where it has ended already.

    Linux can do this. Elsewhere nothing is done, and who starts processes must end them.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
    if os.getppid() != parent:
        sys.exit(f"process {parent}, which started this one, has ended")


def main() -> None:
    """Tie this process and become the command."""
    tie(int(sys.argv[1]))
    os.environ[TIED_TO] = str(os.getpid())
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
