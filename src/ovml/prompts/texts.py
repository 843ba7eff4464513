"""Texts that published codes use and ovml ships: templates, and names of what is no label."""

from __future__ import annotations

import os
from pathlib import Path

from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.resources import RESOURCES
from ovml.vocabulary import read_names


def packaged_background(name: str = "voc") -> tuple[str, ...]:
    """Names that TagCLIP's code scores beside the labels, such as "sky": what images show that is no label.

    Args:
        name: `voc`, 25 names; or `coco`, where two of them are labels or parts of one.

    Raises:
        UserError: There is none of this name.

    >>> len(packaged_background()), len(packaged_background("coco"))
    (25, 23)
    """
    return read_names(_packaged("background", f"{name}.txt"))


def read_templates(name: str) -> list[tuple[str, str]]:
    """Read a file of templates, one per line: a path, or the bare name of one that ovml ships.

    `openai.txt` has the 80 templates of CLIP's prompt engineering for ImageNet (openai/CLIP, MIT licence);
    `tagclip.txt` has five more, such as "there is a {} in the scene.", as in the codes of TagCLIP and CLIP Surgery.

    Returns:
        Each template with its place, for errors.

    Raises:
        UserError: There is no such file, or it cannot be read.

    >>> len(read_templates("openai.txt")), len(read_templates("tagclip.txt"))
    (80, 85)
    """
    path = name if os.path.isfile(name) or Path(name).name != name else _packaged("templates", name, missing=name)
    lines = enumerate(read_text(path, "template", "one template per line").splitlines(), start=1)
    return [(f"{name}, line {number}", line.strip()) for number, line in lines if line.strip()]


def _packaged(folder: str, name: str, missing: str | None = None) -> str | Path:
    """The file of a name in a folder of resources; `missing` where there is none, if that is given."""
    shipped = sorted(path.name for path in (RESOURCES / folder).glob("*.txt"))
    if name in shipped:
        return RESOURCES / folder / name
    if missing is None:
        known = ", ".join(other.removesuffix(".txt") for other in shipped)
        raise UserError(f"{folder} {name.removesuffix('.txt')!r}: not one that ovml ships; those are {known}")
    return missing
