"""Files from outside are read by `alignment.bounded`: a new place that reads otherwise fails until it is looked at."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("alignment", "flows", "labeling") for path in (ROOT / folder).rglob("*.py"))
READS = {
    *("open", "os.open", "json.load", "json.loads", "gzip.open", "gzip.decompress", "zlib.decompress", "bz2.open"),
    *("yaml.safe_load", "yaml.safe_load_all", "yaml.parse", "yaml.compose", "load_file", "safe_open", "torch.load"),
    *("ElementTree.fromstring", "ElementTree.parse", "pyarrow.parquet.ParquetFile", "csv.reader", "PeftConfig"),
    *("pd.read_csv", "pd.read_json", "pd.read_parquet", "datasets.load_dataset", "datasets.load_dataset_builder"),
}
METHODS = ("read_text", "read_bytes", "model_validate_json")
OWN = "written by us, in the home or in an output"
# file and function: why it may read so
ALLOWED: dict[str, str] = {
    "alignment/artifacts.py:_flush": OWN,
    "alignment/artifacts.py:read_result": OWN,
    "alignment/artifacts.py:write_text": OWN,
    "alignment/bounded.py:loads": "the bounded read itself",
    "alignment/bounded.py:open_regular": "the bounded read itself",
    "alignment/data/cleaned.py:__init__": OWN,
    "alignment/data/cleaned.py:_open": OWN,
    "alignment/data/cleaned.py:_read_state": OWN,
    "alignment/data/cleaned.py:blocks": OWN,
    "alignment/data/data_sets.py:read_data_set": "check_files stands before it, or the hub",
    "alignment/data/data_sets.py:split_files": "check_files stands before it, or the hub",
    "alignment/data/deduplication.py:compute": OWN,
    "alignment/data/files.py:_cells": "what it parses was read within limits",
    "alignment/data/files.py:_json_rows": "what it parses was read within limits",
    "alignment/data/files.py:_table_rows": "what it parses was read within limits",
    "alignment/data/parquet.py:parquet_rows": "what it parses was read within limits",
    "alignment/evaluation/gold_curve.py:_read": OWN,
    "alignment/journal.py:cut_half_line": OWN,
    "alignment/journal.py:read_metrics": OWN,
    "alignment/models/chat.py:load_chat": "read_plainly stands before it",
    "alignment/models/checkpoint_files.py:_opened": "the header was checked, or is checked here",
    "alignment/models/finite.py:read_weights": "the header was checked, or is checked here",
    "alignment/models/gguf_files.py:load_config": "check_file stands before it",
    "alignment/models/scalar.py:_config_of": "read_plainly stands before it",
    "alignment/models/tokenizer.py:check_growth": "what it parses was read within limits",
    "alignment/ppo/checkpoint.py:read_checkpoint": OWN,
    "alignment/records.py:read_lines": "what it parses was read within limits",
    "alignment/rollout/server_process.py:_last_lines": "the log of a server that this run started",
    "alignment/rollout/vllm.py:_answer": "the answer of a server that the recipe names",
    "alignment/stages.py:read_step": OWN,
    "alignment/town/world.py:load": OWN,
    "alignment/training/loop.py:resume": OWN,
    "alignment/training/tokens.py:_state": OWN,
    "alignment/training/trl.py:_is_json": OWN,
    "alignment/worker.py:main": OWN,
    "alignment/worker.py:perform": OWN,
    "labeling/judgements/controls.py:controls_of": "a project's label config, which its owner writes",
    "labeling/screens/guidelines.py:copy_guidelines": "the package's own files",
    "labeling/screens/guidelines.py:shipped": "the package's own files",
    "labeling/server/guard/rlhf_pages.py:__init__": "the package's own files",
    "labeling/server/guard/rlhf_urls.py:drafts": "the package's own files",
    "flows/annotation/accounts.py:_read": OWN,
    "flows/annotation/select.py:within_budget": OWN,
    "flows/annotation/wait.py:opened_at": OWN,
    "flows/annotation/waiting.py:read_waiting": OWN,
    "flows/deployments/deploy.py:read_file": OWN,
    "flows/deployments/watcher.py:mark_dead": OWN,
    "flows/locks.py:_open_private": OWN,
    "flows/locks.py:held_locks": OWN,
    "flows/locks.py:holder": "the kernel's list of locks",
    "flows/operations/backup.py:_is_sqlite": OWN,
    "flows/operations/encryption.py:decrypt_file": "blocks of a limited size, of a copy that is regular",
    "flows/operations/encryption.py:encrypt_file": OWN,
    "flows/operations/manifest.py:_check_signature": "a limited part of a regular file, and no link",
    "flows/operations/manifest.py:_content": "a limited part of a regular file, and no link",
    "flows/operations/manifest.py:open_plain": "refuses links and all but regular files",
    "flows/operations/manifest.py:read_key": "a limited part; the person who restores names it",
    "flows/operations/manifest.py:read_manifest": "what it parses was read within limits",
    "flows/operations/restore.py:_copy": "no more than the manifest says, of a regular file that is no link",
    "flows/operations/restore.py:_locked": "a directory that is locked, not read",
    "flows/pipeline/accelerate.py:_failure": OWN,
    "flows/pipeline/accelerate.py:_stream_log": OWN,
    "flows/pipeline/accelerate.py:launch": OWN,
    "flows/pipeline/join.py:announced": OWN,
    "flows/pipeline/join.py:start": OWN,
    "flows/pipeline/sweep.py:outcome_of": OWN,
    "flows/releases/dataset_card.py:_lines": OWN,
    "flows/releases/history.py:changes": OWN,
    "flows/releases/manifest.py:_agreement": OWN,
    "flows/releases/manifest.py:_compute": OWN,
    "flows/releases/manifest.py:_hours": OWN,
    "flows/releases/manifest.py:labels_of": OWN,
    "flows/releases/manifest.py:release_manifest": OWN,
    "flows/releases/trace.py:_find": OWN,
    "flows/releases/trace.py:_was_adjudicated": OWN,
    "flows/stack/credentials.py:read": OWN,
    "flows/stack/listeners.py:listening_accounts": "a table of the kernel",
    "flows/stack/stack.py:_reason": OWN,
    "flows/stack/state.py:read": "what it parses was read within limits",
    "flows/tracking/logs.py:_parse": OWN,
    "flows/tracking/logs.py:first_line": OWN,
    "flows/tracking/logs.py:known_secrets": OWN,
    "flows/tracking/logs.py:read_log": OWN,
    "flows/tracking/metrics.py:_new_lines": OWN,
    "flows/tracking/metrics.py:_parse": OWN,
    "flows/tracking/registry.py:_ensemble": OWN,
    "flows/tracking/registry.py:_signature": OWN,
    "flows/tracking/runner.py:_environment": OWN,
    "flows/tracking/runner.py:_work_and_clean": OWN,
    "flows/tracking/runs.py:read_inputs": OWN,
    "flows/tracking/served_model.py:load_context": OWN,
    "labeling/server/guard/rlhf_guard/bodies.py:_result_refusal": "a request of at most 1.5 MB",
    "labeling/server/guard/rlhf_guard/bodies.py:_text_refusal": "a request of at most 1.5 MB",
    "labeling/collection.py:read_collection": OWN,
    "labeling/judgements/layout.py:_tags": "what it parses was read within limits",
    "labeling/screens/render.py:_layout": OWN,
    "labeling/server/process.py:running_server": OWN,
    "labeling/server/receiver.py:action_of": "the body is bounded by the receiver",
    "labeling/store/store.py:_raw": OWN,
    "labeling/store/store.py:_version": OWN,
    "labeling/store/store.py:current": OWN,
}


def reads(source: str) -> Iterator[str]:
    """The functions of a file that read files or parse what others wrote; "" stands for the module itself."""
    for function, node in calls(ast.parse(source), ""):
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2]
        written = any(isinstance(word, ast.Constant) and is_writing(word.value) for word in node.args)
        opened = method == "open" and name not in ("os.open", "webbrowser.open") and not written
        if name == "open" and written:
            continue
        if name in READS or (opened and "." in name) or method in METHODS or name.endswith("Config.from_pretrained"):
            yield function


def is_writing(mode: object) -> bool:
    """Whether the mode of an open file only writes."""
    return isinstance(mode, str) and mode in ("w", "wb", "a", "ab", "x", "xb")


def calls(tree: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name of the innermost function around it."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Call):
            yield function, child
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        yield from calls(child, inner)


def places() -> set[str]:
    """All places that read, as file:function."""
    return {
        f"{path.relative_to(ROOT)}:{function}" for path in FILES for function in reads(path.read_text(encoding="utf-8"))
    }


def test_files_from_outside_are_read_within_limits() -> None:
    new = places() - ALLOWED.keys()
    assert not new, f"{sorted(new)} read otherwise than by alignment.bounded: use it, or say here why not"


def test_the_list_has_nothing_that_is_gone() -> None:
    assert not ALLOWED.keys() - places()


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "json.loads(path.read_bytes())",
        "open(path)",
        "path.open()",
        'path.open("rb")',
        "gzip.open(path)",
        "yaml.safe_load(text)",
        "State.model_validate_json(raw)",
        "load_file(path)",
        "AutoConfig.from_pretrained(path)",
    ],
)
def test_the_rule_has_teeth(line: str) -> None:
    assert list(reads(f"def f():\n    {line}\n"))[:1] == ["f"]
    assert not list(reads('def f():\n    path.open("w")\n    read_bounded(path)\n'))
