"""Prefect's results, switched off in a process: none is read, and none is written.

A state in Prefect's API may name a result: a file or a block of storage, and the serializer that reads it, by default
pickle. Whoever may write states would run code in every process that asks for the result. Our flows persist nothing:
MLflow and the home have their outputs.
"""

from typing import NoReturn

from prefect import results
from prefect._internal import result_records
from prefect.results import ResultRecord, ResultStore
from prefect.serializers import CompressedSerializer, JSONSerializer, PickleSerializer

from alignment.errors import RLHFError

READ = ("_from_metadata", "read", "aread", "_read", "_aread")  # methods of a ResultStore
RESOLVE = ("resolve_result_storage", "aresolve_result_storage")
DEFAULT_BLOCK = "_read_server_default_result_storage_block_id"


class ResultRefused(RLHFError):
    """A result that a state in Prefect's API names."""


def refuse_results() -> None:
    """Let Prefect read and write no results in this process. Call it before any request to Prefect."""
    for method in READ:
        _replace(ResultStore, method, _refuse)
    for method in ("deserialize", "deserialize_from_result_and_metadata"):
        _replace(ResultRecord, method, _refuse)
    for serializer in (PickleSerializer, JSONSerializer, CompressedSerializer):
        _replace(serializer, "loads", _refuse)
    for function in RESOLVE:
        _replace(results, function, _refuse)
    _replace(result_records, "lookup_type", _unknown)  # else reading a state imports the modules that it names
    _replace(results, DEFAULT_BLOCK, lambda: None)
    _replace(results, f"_a{DEFAULT_BLOCK[1:]}", _nothing)
    _replace(ResultStore, "exists", lambda *_: False)
    _replace(ResultStore, "aexists", _nothing)
    _replace(ResultStore, "persist_result_record", lambda *_, **__: None)
    _replace(ResultStore, "apersist_result_record", _nothing)


def _replace(owner: object, name: str, replacement: object) -> None:
    if not hasattr(owner, name):
        raise RLHFError(f"this version of Prefect has no {name}: install the version that requirements.lock names")
    setattr(owner, name, replacement)


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ResultRefused(
        "a state in Prefect names a stored result, which is not read: it can be code. The output of a stage is in "
        "MLflow and in the home"
    )


def _unknown(*_: object, dispatch_key: str) -> NoReturn:
    """No serializer is known: Prefect then keeps its description as it is."""
    raise KeyError(dispatch_key)


async def _nothing(*_: object, **__: object) -> None:
    """None, for a coroutine."""
