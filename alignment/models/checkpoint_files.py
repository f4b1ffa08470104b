"""The files of a checkpoint, checked before a library reads them: kinds, links, sizes, and what `config.json` claims.

Everything here is cheap: directory entries, small JSON files and the headers of safetensors.
"""

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignment.bounded import MIB, read_json, size_text
from alignment.errors import CheckpointError

CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
LARGEST_CONFIG, LARGEST_JSON, LARGEST_TEMPLATE = 16 * MIB, 512 * MIB, MIB
SIZES = re.compile(
    r"hidden_size|intermediate_size|vocab_size|head_dim|d_model|n_embd|n_positions|max_position_embeddings"
    r"|(n|num)(_hidden)?_layers?|(n|num)(_attention)?_heads?"
)
MOST_LABELS, MOST_EXPERTS = 100_000, 4096
ADAPTER = "adapter_config.json"


def check_files(directory: Path) -> None:
    """Raise CheckpointError for a file that is none, leads out of the directory, is too large or cannot be read."""
    refuse_adapter(directory, directory / ADAPTER if (directory / ADAPTER).is_file() else None)
    files = [path for path in sorted(directory.iterdir()) if path.is_symlink() or not path.is_dir()]
    for path in files:
        _check_kind(path, directory)
        limit = {".json": LARGEST_JSON, ".jinja": LARGEST_TEMPLATE}.get(path.suffix)
        if limit is not None and path.is_file() and path.stat().st_size > limit:
            raise CheckpointError(f"{path} has more than {size_text(limit)}: fetch the checkpoint again")
    configs = {name: read_config(directory / name) for name in CONFIGS if (directory / name).exists()}
    tensors = sum(count_tensors(path) for path in files if path.suffix == ".safetensors")
    _check_claims(directory / "config.json", configs.get("config.json", {}), tensors)


def _check_kind(path: Path, directory: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): fetch the checkpoint again") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path} is not a file but a pipe, a device or a socket: remove it")
    if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in _roots(directory)):
        raise CheckpointError(
            f"{path} is a link to {path.resolve()}, outside of the checkpoint: if that is right, copy the file there"
        )


def _roots(directory: Path) -> Iterator[Path]:
    """Where links of a checkpoint may lead: into itself, and in a cache of the hub to the repository's blobs."""
    yield directory.resolve()
    if directory.absolute().parent.name == "snapshots":
        yield (directory.absolute().parent.parent / "blobs").resolve()


def read_config(path: Path) -> dict[str, Any]:
    """The options in a JSON file of a checkpoint. Raises CheckpointError if it is no JSON object."""
    try:
        config = read_json(path, LARGEST_CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; fetch the checkpoint again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no object but {type(config).__name__}: fetch the checkpoint again")
    return config


def count_tensors(path: Path) -> int:
    """The number of tensors of a safetensors file. Raises CheckpointError if its header does not fit the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return len(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file ({error}): fetch it again") from error


def count_parameters(directory: Path) -> int:
    """The number of values in a checkpoint's safetensors, from their headers."""
    total = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def _check_claims(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Raise CheckpointError for sizes that no model has, before anything of that size is made."""
    text = config.get("text_config")
    for section in (config, text if isinstance(text, Mapping) else {}):
        for name, value in section.items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if SIZES.fullmatch(name) and value < 1:
                raise CheckpointError(f"{path} has {name} {value}, which must be at least 1")
            most = MOST_LABELS if name == "num_labels" else MOST_EXPERTS if name.endswith("experts") else None
            if most is not None and value > most:
                raise CheckpointError(f"{path} has {name} {value}, more than {most}: no model has as many")
            if tensors and re.search(r"layers?$", name) and value > tensors:
                raise CheckpointError(f"{path} has {name} {value}, but the weights beside it are {tensors} tensors")


def refuse_adapter(path: str | Path, config: Path | str | None) -> None:
    """Raise CheckpointError for an adapter in place of a model: its base would be read from where the adapter says."""
    if config is None:
        return
    base = read_config(Path(config)).get("base_model_name_or_path")
    raise CheckpointError(
        f"{path} holds a PEFT adapter over {str(base)[:200]!r}, and a base is never read from where an adapter says: "
        "merge them where you trust both (`PeftModel.from_pretrained(base, adapter).merge_and_unload()` of peft, then "
        "`save_pretrained(directory)`) and name that directory"
    )
