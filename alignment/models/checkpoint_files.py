"""The files of a checkpoint, checked before a library reads them: kinds, links, sizes, and what `config.json` claims.

Everything here is cheap: directory entries, small JSON files and the headers of safetensors.
"""

import math
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignment.bounded import MIB, open_regular, read_json, size_text
from alignment.errors import CheckpointError

CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")
LARGEST_CONFIG, LARGEST_INDEX, LARGEST_JSON, LARGEST_TEMPLATE = 16 * MIB, 64 * MIB, 512 * MIB, MIB
SIZES = re.compile(
    r"hidden_size|intermediate_size|vocab_size|head_dim|d_model|n_embd|n_positions|max_position_embeddings"
    r"|(n|num)(_hidden)?_layers?|(n|num)(_attention|_key_value|_kv)?_heads?"
)
LAYERS = re.compile(r"(?<!max_window_)layers?$")  # Qwen has more layers there than it need have
CONTEXTS = ("max_position_embeddings", "n_positions")
POINTED = (".safetensors", ".json", ".jinja", ".model")
POINTER = b"version https://git-lfs"  # what Git LFS leaves in place of a file that was not fetched
MOST_LABELS, MOST_EXPERTS = 100_000, 4096
MOST_TENSORS = 100_000  # of all files; an empty one takes no bytes of a file and milliseconds of every library
ADAPTER = "adapter_config.json"


def check_files(directory: Path) -> None:
    """Raise CheckpointError for a file that is none, leads out of the directory, is too large or cannot be read."""
    refuse_adapter(directory, directory / ADAPTER if (directory / ADAPTER).is_file() else None)
    files = [path for path in sorted(directory.iterdir()) if path.is_symlink() or not path.is_dir()]
    for path in files:
        _check_kind(path, directory)
        _refuse_pointer(path)
        limit = {".json": LARGEST_JSON, ".jinja": LARGEST_TEMPLATE}.get(path.suffix)
        if limit is not None and path.is_file() and path.stat().st_size > limit:
            raise CheckpointError(f"{path} has more than {size_text(limit)}: fetch the checkpoint again")
    configs = {name: read_config(directory / name) for name in CONFIGS if (directory / name).exists()}
    tensors = sum(count_tensors(path) for path in files if path.suffix == ".safetensors")
    if tensors > MOST_TENSORS:
        raise CheckpointError(f"the weights in {directory} are {tensors} tensors, more than {MOST_TENSORS}")
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


def is_gguf(path: str | Path) -> bool:
    """Whether a checkpoint is a GGUF file, by its name."""
    return Path(path).suffix.lower() == ".gguf"


def read_config(path: Path, most: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The options in a JSON file of a checkpoint. Raises CheckpointError if it is no JSON object."""
    try:
        config = read_json(path, most)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; fetch the checkpoint again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no object but {type(config).__name__}: fetch the checkpoint again")
    return config


def count_tensors(path: Path) -> int:
    """The number of tensors of a safetensors file. Raises CheckpointError if its header does not fit the file."""
    with _opened(path) as file:
        return len(file.keys())


def count_parameters(directory: Path) -> int:
    """The number of values in the weights of a checkpoint, from their headers."""
    return sum(_count_values(path) for path in weight_files(directory))


def weight_files(directory: Path) -> list[Path]:
    """The files that `transformers` reads weights from: other copies of them may lie beside these."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    files = sorted(directory.glob("*.safetensors"))
    if not index.exists():
        return files
    weight_map = read_config(index, LARGEST_INDEX).get("weight_map")
    named = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    return [path for path in files if path.name in named]


def _count_values(path: Path) -> int:
    with _opened(path) as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no dict


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    _refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file ({error}): fetch it again") from error


def _refuse_pointer(path: Path) -> None:
    if path.suffix not in POINTED or not path.is_file():
        return
    with open_regular(path) as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` where the checkpoint was cloned"
            )


def _check_claims(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Raise CheckpointError for sizes that no model has, before anything of that size is made."""
    text = config.get("text_config")
    for section in (config, text if isinstance(text, Mapping) else {}):
        for name, value in section.items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if SIZES.fullmatch(name) and value < 1:
                raise CheckpointError(f"{path} has {name} {value}, which must be at least 1")
            if name in CONTEXTS and value < 2:
                raise CheckpointError(f"{path} has {name} {value}: a question and an answer take at least 2 tokens")
            most = MOST_LABELS if name == "num_labels" else MOST_EXPERTS if name.endswith("experts") else None
            if most is not None and value > most:
                raise CheckpointError(f"{path} has {name} {value}, more than {most}: no model has as many")
            if tensors and LAYERS.search(name) and value > tensors:
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
