"""Import rules and size limits, checked on the syntax tree of every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import layers

ROOT = Path(__file__).parent.parent
PACKAGES = ("alignment", "flows", "labeling")
FOUNDATIONS = {
    *("alignment.config.base", "alignment.config.stages", "alignment.config.training", "alignment.footprint.model"),
    *("alignment.records", "alignment.criteria", "alignment.errors", "alignment.bounded", "alignment.encodings"),
}
SHARED_WITH_LABELING = (  # rows, what a response is rated on, and how a file from outside is read
    *("alignment.records", "alignment.criteria", "alignment.bounded", "alignment.encodings", "alignment.plain_yaml"),
)
MATHEMATICS = {
    *("alignment.ppo.advantages", "alignment.ppo.losses", "alignment.ppo.kl", "alignment.ppo.shaping"),
    *(
        "alignment.models.heads",
        "alignment.models.logprobs",
        "alignment.reward_model.loss",
        "alignment.statistics",
        "alignment.models.ensembles",
    ),
    "alignment.evaluation.overoptimization",
}
FORBIDDEN = {
    "alignment": ("flows", "labeling", "prefect", "mlflow", "label_studio_sdk", "typer"),
    "labeling": ("flows", "prefect", "mlflow", "torch", "transformers", "typer"),
    "flows": ("torch", "transformers", "trl"),
}
MODELS_AS_CODE = {"flows.tracking.served_model"}  # is logged to MLflow with the package `alignment`
GUARD = ROOT / "labeling" / "server" / "guard" / "rlhf_guard"  # within Label Studio its package has another name
LONGEST_FILE, LONGEST_FUNCTION = 500, 80


def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, also inside functions; `from a import b` counts as `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and path.parent == GUARD:
                continue
            assert node.level == 0, f"{path}:{node.lineno} uses a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


ALL = modules()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    for name, path in ALL.items():
        if not within(name, package) or name in MODELS_AS_CODE:
            continue
        for imported in imports(path):
            wrong = [other for other in FORBIDDEN[package] if within(imported, other)]
            assert not wrong, f"{name} imports {imported}, which {package} must not know"


def test_labeling_knows_only_records_criteria_and_the_reading_of_files_of_alignment() -> None:
    for name, path in ALL.items():
        if within(name, "labeling"):
            known = [other for other in imports(path) if within(other, "alignment")]
            unshared = [other for other in known if not any(within(other, one) for one in SHARED_WITH_LABELING)]
            assert not unshared, f"{name} imports {unshared}"


def test_foundations_stand_alone_and_mathematics_stands_on_them() -> None:
    names = {*ALL}
    for name in FOUNDATIONS | MATHEMATICS:
        allowed = FOUNDATIONS if name in FOUNDATIONS else FOUNDATIONS | MATHEMATICS
        for imported in imports(ALL[name]):
            if within(imported, "alignment") and imported in names:
                packages = {module.rpartition(".")[0] for module in allowed}
                assert imported in allowed | packages, f"{name} imports {imported}"


@pytest.mark.parametrize("package", layers.LIMITS)
def test_imports_climb_few_floors_and_run_in_no_circle(package: str) -> None:
    imported = layers.rooms(package)
    assert not layers.circles(imported), f"a circle of imports in {package}: {layers.circles(imported)}"
    by_room = layers.floors(imported)
    assert max(by_room.values()) <= layers.LIMITS[package], by_room


def test_layers_are_read_off_the_imports(tmp_path: Path) -> None:
    for name, text in {"low.py": "", "mid/__init__.py": "", "mid/a.py": "import p.low", "high.py": ""}.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text(text)
    (tmp_path / "p" / "high.py").write_text("def f():\n    from p.mid.a import g\n    from p import low\n")
    imported = layers.rooms("p", tmp_path)
    assert imported == {"low": set(), "mid": {"low"}, "high": {"low", "mid"}}
    assert layers.circles(imported) == [] and layers.floors(imported) == {"low": 1, "mid": 2, "high": 3}
    (tmp_path / "p" / "low.py").write_text("from p.high import f")
    assert layers.circles(layers.rooms("p", tmp_path)) == ["high", "low", "mid"]


def test_files_and_functions_are_short() -> None:
    for name, path in ALL.items():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST_FILE, f"{name} has {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{name}.{node.name} has {length} lines"


def test_every_module_says_what_it_is_for() -> None:
    for name, path in ALL.items():
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{name} has no docstring"


def test_the_rules_have_teeth(tmp_path: Path) -> None:
    file = tmp_path / "hidden.py"
    file.write_text("def f():\n    from prefect import flow\n    import mlflow.pyfunc\n")
    assert {"prefect", "prefect.flow", "mlflow.pyfunc"} <= set(imports(file))
    assert within("mlflow.pyfunc", "mlflow")
    assert not within("mlflowx", "mlflow")
