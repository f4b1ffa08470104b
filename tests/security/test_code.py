"""Forbidden in source code, checked on the syntax tree: executing input, and starting a shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for folder in ("alignment", "flows", "labeling", "benchmarks", "deploy")
    for path in (ROOT / folder).rglob("*.py")
)
RUNS_WHAT_IT_READS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "marshal.loads"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "shelve.open", "cloudpickle.load"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.FullLoader", "yaml.Loader"),
    *("shutil.unpack_archive", "tarfile.open", "tarfile.TarFile", "zipfile.ZipFile", "zipfile.PyZipFile"),
}
UNPACKS = ("extract", "extractall")  # methods of archives, whatever opened them
LINKS = ("symlink_to", "hardlink_to", "os.symlink", "os.link", "os.mkfifo", "os.mknod")
MAKES_LINKS = (
    "flows/operations/restore.py",  # after their targets were checked (`test_backups.py`)
    "alignment/models/gguf_files.py",  # in a temporary directory, to a GGUF file that was checked
    "benchmarks/memory.py",  # in a temporary directory, to a checkpoint of its own
    "alignment/data/data_sets.py",  # in a temporary directory, to files that were checked (`test_data_sets.py`)
)
AUTO = ("AutoModel", "AutoConfig", "AutoTokenizer")


def called(node: ast.Call) -> str:
    """The name that is called, with dots."""
    return ast.unparse(node.func)


def faults(source: str) -> list[str]:
    """What a file does that it must not, with the lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, told = called(node), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in RUNS_WHAT_IT_READS:
            found.append(f"{node.lineno}: {name}")
        if name.rpartition(".")[2] in UNPACKS:
            found.append(f"{node.lineno}: {name} unpacks an archive")
        if name == "torch.load" and told.get("weights_only") != "True":
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if told.get("shell", "False") != "False":
            found.append(f"{node.lineno}: shell={told['shell']}")
        if told.get("trust_remote_code", "False") != "False" or told.get("allow_pickle", "False") != "False":
            found.append(f"{node.lineno}: code of others")
        if name.startswith(AUTO) and name.endswith("from_pretrained") and not plainly(node, told):
            found.append(f"{node.lineno}: {name} may ask whether to run code of others")
    return found


def plainly(node: ast.Call, told: dict[str | None, str]) -> bool:
    """Whether remote code is refused in so many words: None, the default, asks whoever sits at the terminal."""
    spread = told.get(None) in ("PLAIN", "NEVER_CODE")
    return spread or told.get("trust_remote_code") == "False"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_what_it_reads(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


def test_one_file_alone_makes_links() -> None:
    for path in FILES:
        calls = [called(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if str(path.relative_to(ROOT)) not in MAKES_LINKS:
            assert not [name for name in calls if name.endswith(LINKS)], f"{path} makes links: check where they lead"


@pytest.mark.parametrize(
    "line",
    [
        "archive.extractall(place)",
        "tarfile.TarFile(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "pickle.load(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(p)",
        "np.load(f, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(p, **options)",
        "load_dataset(name, trust_remote_code=True)",
        "exec(code)",
        "os.system(c)",
    ],
)
def test_the_rules_have_teeth(line: str) -> None:
    assert faults(line)


def test_the_two_spreads_mean_what_they_say() -> None:
    from alignment.models.safe_loading import NEVER_CODE, PLAIN

    assert NEVER_CODE == {"trust_remote_code": False} and PLAIN == {**NEVER_CODE, "use_safetensors": True}
