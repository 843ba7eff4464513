"""Imports point one way: the order of the rooms stands in CONTRIBUTING.md, and is read from there."""

import ast
import re
from pathlib import Path

import ovml

ROOT = Path(ovml.__file__).parent
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
MARKERS = {"py.typed", "__pycache__"}


def layers():
    """Names of rooms in their order, from the one line of CONTRIBUTING.md that has it."""
    (line,) = (
        line for line in CONTRIBUTING.read_text().splitlines() if re.fullmatch(r" {4}\w+( [<,] ?|, |\w+)*", line)
    )
    return [[name.strip() for name in layer.split(",")] for layer in line.split("<")]


def room_of(module):
    """`heads` of `ovml.heads.base`."""
    return module.split(".")[1] if "." in module else ""


def module_of(path):
    """`ovml.heads.base` of its file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules():
    """Every module but the front doors, which are `ovml/__init__.py` and `ovml/__main__.py`."""
    return {
        module_of(path): path for path in ROOT.rglob("*.py") if path.parent != ROOT or not path.stem.startswith("__")
    }


def imported(path):
    """Modules that a file imports, anywhere in it; `from ovml.a import b` may name the module `ovml.a.b`."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names} & set(known)
            yield from names or {node.module or ""}


def test_every_room_has_its_place():
    rooms = {path.stem for path in ROOT.iterdir() if path.name not in MARKERS and not path.stem.startswith("__")}
    assert rooms - {"resources"} <= {name for layer in layers() for name in layer}


def test_the_root_has_at_most_18_entries():
    entries = {path.name for path in ROOT.iterdir()} - MARKERS
    assert len(entries) <= 18, sorted(entries)


def test_imports_point_one_way():
    level = {name: number for number, layer in enumerate(layers()) for name in layer}
    for module, path in modules().items():
        own = room_of(module)
        for other in filter(lambda name: name.startswith("ovml."), imported(path)):
            there = room_of(other)
            assert there == own or level[there] < level[own], f"{module} imports {other}"


def test_files_import_each_other_in_no_circle():
    known = modules()
    below = {module: {other for other in imported(path) if other in known} for module, path in known.items()}
    while leaves := {module for module, others in below.items() if not others}:
        below = {module: others - leaves for module, others in below.items() if module not in leaves}
    assert not below, sorted(below)


def test_no_import_is_hidden():
    for module, path in modules().items():
        assert "TYPE_CHECKING" not in path.read_text(), module
        assert "ovml" not in set(imported(path)), f"{module} imports from ovml itself"


def test_parts_know_nothing_of_lightning_or_data_sets():
    for name in ("encoders", "heads", "prompts", "losses", "distillation", "vocabulary", "utils"):
        for path in [*ROOT.glob(f"{name}.py"), *(ROOT / name).rglob("*.py")]:
            assert not {m.split(".")[0] for m in imported(path)} & {"lightning", "datasets", "jsonargparse"}, path
