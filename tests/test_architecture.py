"""The import rules and the limits on size that keep the tree readable, checked on the syntax of every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("alignment", "flows", "labeling")
FOUNDATIONS = {"alignment.options", "alignment.config.stages", "alignment.records", "alignment.errors"}
MATHEMATICS = {
    *("alignment.ppo.advantages", "alignment.ppo.losses", "alignment.ppo.kl", "alignment.ppo.shaping"),
    *("alignment.models.logprobs", "alignment.reward_model.loss", "alignment.statistics", "alignment.models.ensembles"),
    "alignment.evaluation.overoptimization",
}
FORBIDDEN = {
    "alignment": ("flows", "labeling", "prefect", "mlflow", "label_studio_sdk", "typer"),
    "labeling": ("flows", "prefect", "mlflow", "torch", "transformers", "typer"),
    "flows": ("torch", "transformers", "trl"),
}
MODELS_AS_CODE = {"flows.tracking.served_model"}  # is logged to MLflow and runs there alone
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


def test_labeling_knows_only_the_records_of_alignment() -> None:
    for name, path in ALL.items():
        if within(name, "labeling"):
            known = [other for other in imports(path) if within(other, "alignment")]
            assert all(within(other, "alignment.records") for other in known), f"{name} imports {known}"


def test_foundations_stand_alone_and_mathematics_stands_on_them() -> None:
    names = {*ALL}
    for name in FOUNDATIONS | MATHEMATICS:
        allowed = FOUNDATIONS if name in FOUNDATIONS else FOUNDATIONS | MATHEMATICS
        for imported in imports(ALL[name]):
            if within(imported, "alignment") and imported in names:
                packages = {module.rpartition(".")[0] for module in allowed}
                assert imported in allowed | packages, f"{name} imports {imported}"


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
