"""A flow for tests to kill."""

import time

from prefect import flow


@flow(name="asleep", persist_result=False)
def asleep() -> None:
    time.sleep(3600)
