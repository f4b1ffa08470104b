"""A limit on wrong passwords, by the address that sends them and the account that they are for.

An address alone would shut out everybody behind the same proxy, and all people of one machine.
"""

import threading
import time
from collections import deque

FAILURES, MINUTE_SECONDS, REMEMBERED = 20, 60.0, 10_000
LOG_IN = ("/user/login", "/admin/login", "/api-auth/login")  # each takes the password of any account
Who = tuple[str, str]


class Attempts:
    """The attempts of the last minute that have not succeeded, of one process of the server."""

    def __init__(self) -> None:
        """None yet."""
        self._times: dict[Who, deque[float]] = {}
        self._lock = threading.Lock()

    def begin(self, who: Who) -> bool:
        """Count an attempt; False if there were too many. The oldest are forgotten when too many are remembered."""
        now = time.monotonic()
        with self._lock:
            times = self._times.pop(who, deque(maxlen=FAILURES))
            self._times[who] = times
            if len(self._times) > REMEMBERED:
                del self._times[next(iter(self._times))]
            if len(times) == FAILURES and now - times[0] < MINUTE_SECONDS:
                return False
            times.append(now)
            return True

    def forget(self, who: Who) -> None:
        """Take back the last attempt: its password was right, or none was checked."""
        with self._lock:
            if times := self._times.get(who):
                times.pop()


def is_log_in(method: str, path: str) -> bool:
    """Whether a request brings a password."""
    return method == "POST" and path.rstrip("/").endswith(LOG_IN)
