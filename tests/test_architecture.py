"""Imports point one way."""

import ast
from pathlib import Path

import ovml

ROOT = Path(ovml.__file__).parent
LAYERS = [
    {"errors"},
    {"vocabulary", "images", "checkpoints", "prefix", "notices", "precision"},
    {"blocks"},
    {"encoders"},
    {"heads", "prompts", "losses", "distillation", "metrics", "optim"},
    {"calibration", "protocols"},
    {"training", "tuning", "ladder", "scoring", "learned", "learning", "evaluating", "processes"},
    {"classifier", "data", "tagging", "tag_files", "tag_output", "tagging_ray", "reporting"}
    | {"hub", "saved_model", "model_card", "parts", "mkt_import", "label_embeddings", "export"},
    {"averaging", "callbacks", "feature_cache", "plots"},
    {"app"},
    {"cli_parser"},
    {"cli", "cli_app", "cli_completion", "cli_doctor", "cli_embed", "cli_explain", "cli_export", "cli_import"}
    | {"cli_lightning", "cli_prepare", "cli_tag", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ALONE = {"heads", "prompts", "losses", "metrics", "distillation", "optim"}


def imports(path):
    """Modules imported when the file is run: not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_one_way():
    files = [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]
    assert len(files) > 20
    for path in files:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            if module.startswith("ovml."):
                other = module.split(".")[1]
                assert LEVEL[other] <= LEVEL[own], f"{path.name} imports {module}"
                assert not (own in ALONE and other in ALONE and own != other), f"{path.name} imports {module}"


def test_parts_know_nothing_of_lightning_or_data_sets():
    for name in ALONE | {"encoders", "vocabulary"}:
        for path in [*ROOT.glob(f"{name}.py"), *(ROOT / name).rglob("*.py")]:
            assert not {m.split(".")[0] for m in imports(path)} & {"lightning", "datasets", "jsonargparse"}, path
