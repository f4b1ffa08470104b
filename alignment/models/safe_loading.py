"""Loading of untrusted files without running code: weights from safetensors only, no code of a checkpoint.

A pickle can run arbitrary code, and so can the Python files that a `config.json` can name under `auto_map`. Neither is
ever loaded, and no option changes that.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, StrictDataclassError

from alignment.bounded import loads, read_bounded
from alignment.errors import CheckpointError, RLHFError, causes
from alignment.hub import check_hub_address, hub_host, hub_read
from alignment.models.checkpoint_files import LARGEST_INDEX, check_files
from alignment.paths import exists, is_directory

NEVER_CODE: dict[str, Any] = {"trust_remote_code": False}  # None would prompt on the terminal
PLAIN: dict[str, Any] = {**NEVER_CODE, "use_safetensors": True}
LONGEST_REASON = 500
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@contextmanager
def read_plainly(what: str, path: str | Path) -> Iterator[None]:
    """Turn errors of loading a checkpoint into CheckpointError.

    `what` starts the message ("no tokenizer"). A local directory is checked before anything in it is loaded.
    """
    check_hub_address()
    local = exists(path) or Path(path).suffix.lower() == ".gguf"
    check_directory(Path(path))
    try:
        with nullcontext() if local else hub_read(str(path), CheckpointError):
            yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds pickled weights, which can run code: {_convert()}") from error
    except (RLHFError, MemoryError):
        raise
    except Exception as error:  # libraries raise anything for a file that is not what they expect
        if type(error).__name__ == "OutOfMemoryError":  # of a GPU
            raise
        if (cause := _without_hub(error)) is not None:
            where = "" if local else "it is no directory here, and "
            raise CheckpointError(
                f"{what} could be loaded from {path}: {where}the hub ({hub_host()}) did not provide it ({cause}). "
                "Check the name and the network (HF_ENDPOINT, HTTPS_PROXY, HF_HUB_OFFLINE), or download it elsewhere "
                f"with `hf download {path} --local-dir DIRECTORY` and name that directory"
            ) from error
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{path} comes with Python code of its own, which is never run here: take a checkpoint whose "
                "architecture `transformers` knows"
            ) from error
        if "Unrecognized configuration class" in str(error):
            kind = str(error).partition(" for this kind of AutoModel")[0].rpartition(".")[2].strip("'> ")
            raise CheckpointError(
                f"{what} could be loaded from {path}: transformers has none with the architecture of {kind}; "
                "docs/models.md lists architectures that work"
            ) from error
        raise CheckpointError(f"{what} could be loaded from {path}: {_reason(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the tokenizers' Rust, and no Exception
            raise
        raise CheckpointError(f"{what} could be used from {path}: {str(error)[:LONGEST_REASON]}") from error


def _reason(error: Exception) -> str:
    if "ignore_mismatched_sizes" in str(error):
        return "the shapes of its weights are not those that its config.json describes; fetch it again"
    text = " ".join(str(error).split())[:LONGEST_REASON]
    if isinstance(error, StrictDataclassError):
        return f"its config.json does not fit its architecture ({text.rpartition('Error: ')[2]})"
    if isinstance(error, KeyError):
        return f"it lacks {text}, or has it where `transformers` knows no such value"
    if "Padding_idx" in text:
        return "the pad_token_id in its config.json is no token of its vocabulary"
    return text if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: {text}"


def _without_hub(error: BaseException) -> str | None:
    """Why the hub was not available or did not have a file, if that caused the error."""
    chain = [*causes(error)]
    if not any(isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) for cause in chain[1:]):
        return None
    reasons = [str(cause).partition("\n")[0] for cause in chain if not isinstance(cause, LocalEntryNotFoundError)]
    return next((reason[:200] for reason in reversed(reasons) if reason), "no reason given")


def check_directory(path: Path) -> None:
    """Reject a local checkpoint with only pickled weights, or with an index of weights outside the directory."""
    if not is_directory(path):
        if exists(path) and path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path} is neither a directory nor a GGUF file: name the checkpoint's directory")
        return
    pickled = sorted({file.name for pattern in PICKLES for file in path.glob(pattern)})
    if pickled and not list(path.glob("*.safetensors")):
        raise CheckpointError(f"{path} has no *.safetensors but {', '.join(pickled)}, which can run code: {_convert()}")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        _check_index(index)
    check_files(path)


def _check_index(index: Path) -> None:
    """Check that every weights file in the index is a safetensors file beside it."""
    try:
        named = {str(name) for name in loads(read_bounded(index, LARGEST_INDEX).decode())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {error}") from error
    strange = sorted(name for name in named if Path(name).name != name or not name.endswith(".safetensors"))
    if strange:
        raise CheckpointError(f"{index} names {strange[0]!r}: weights are *.safetensors files in the same directory")


def _convert() -> str:
    return (
        "load it where you trust its maker, and save it again with `model.save_pretrained(directory)` of transformers, "
        "which writes safetensors"
    )
