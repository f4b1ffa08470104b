"""The layers of each package, read off its imports: `python -m tests.layers` prints them.

A room is a module or a folder at the top of a package. A room stands one floor above the highest room that it imports,
anywhere in its files, also inside functions. Rooms that import each other in a circle have no floor.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMITS = {"alignment": 8, "labeling": 7, "flows": 8}


def rooms(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """The rooms of a package, each with the rooms that it imports."""
    names = {
        path.stem for path in (root / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    imported: dict[str, set[str]] = {name: set() for name in sorted(names - {"__init__"})}
    for path in sorted((root / package).rglob("*.py")):
        room = path.relative_to(root / package).parts[0].removesuffix(".py")
        if room != "__init__":
            imported[room] |= (imports(path, package) & imported.keys()) - {room}
    return imported


def imports(path: Path, package: str) -> set[str]:
    """The rooms of a package that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith(f"{package}.")}
    return found


def circles(imported: Mapping[str, set[str]]) -> list[str]:
    """The rooms that reach themselves by imports."""
    return [room for room in imported if room in _reached(imported, room)]


def _reached(imported: Mapping[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = imported[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def floors(imported: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each room, 1 for one that imports no other. Needs rooms without circles."""
    known: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in known:
            known[room] = 1 + max((floor(other) for other in imported[room]), default=0)
        return known[room]

    return {room: floor(room) for room in imported}


def main() -> None:
    """Print the layers of each package, the lowest first."""
    for package, limit in LIMITS.items():
        imported = rooms(package)
        if circle := circles(imported):
            print(f"{package}: a circle of imports: {', '.join(circle)}")
            continue
        by_room = floors(imported)
        print(f"{package}: {max(by_room.values())} floors (limit {limit})")
        for number in range(1, max(by_room.values()) + 1):
            print(f"  {number}  {' '.join(room for room, floor in by_room.items() if floor == number)}")


if __name__ == "__main__":
    main()
