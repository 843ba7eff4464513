"""What is part of the package beside its code: the embedded model, configurations, label vocabularies."""

from __future__ import annotations

import os
from pathlib import Path

from ovml.utils.errors import UserError

RESOURCES = Path(__file__).parents[1] / "resources"
DEMO = "ovml-demo"
"""Name of the embedded CLIP checkpoint, which was trained on drawn shapes."""
DEFAULT = "openai/clip-vit-base-patch16"
"""Name of the CLIP checkpoint that the recipes start from."""


VOCABULARIES = {
    "everyday": "what photographs show, from animals to symbols, with parents",
    "coco": "the classes of COCO's object detection",
    "voc": "the classes of Pascal VOC",
    "nuswide": "the 81 concepts of NUS-WIDE",
    "openimages": "the classes of Open Images that have boxes",
}
"""What each packaged vocabulary names; its file is `vocabularies/NAME.csv`."""


def vocabulary_path(name: str) -> Path:
    """Find the file of a packaged vocabulary.

    Raises:
        UserError: There is none of this name.
    """
    if name not in VOCABULARIES:
        raise UserError(f"vocabulary {name!r}: not one that ovml ships; those are {', '.join(VOCABULARIES)}")
    return RESOURCES / "vocabularies" / f"{name}.csv"


def config_path(name: str) -> str:
    """Find a configuration: a path, or the bare name of one that ovml ships.

    Raises:
        UserError: There is no such file.
    """
    configs = RESOURCES / "configs"
    for path in (Path(name), configs / name):
        if os.path.isfile(path):  # where Path.is_file raises errors of names that are too long
            return str(path)
    shipped = ", ".join(sorted(p.name for p in configs.glob("*.yaml")))
    raise UserError(f"config {name}: no such file; give a path or one of those that ovml ships: {shipped}")
