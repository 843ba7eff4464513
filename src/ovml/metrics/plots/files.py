"""Writing pictures, and the library that draws curves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(picture: Image.Image | Figure, path: str | Path) -> Path:
    """Write a picture beside its place and rename it into it, so that it is never half there.

    Args:
        picture: A PIL image or a matplotlib figure.
        path: Its name ends in `.png`; folders are made.

    Raises:
        UserError: The name has another ending, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: cannot tell what to write; let the name end in .png")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a file")
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(picture, Image.Image):
                picture.save(aside, "PNG", optimize=True)
            else:
                picture.savefig(aside, format="png")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, of 100 pixels each; without pyplot, so that no window and no global state is needed.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures of an evaluation need matplotlib; pip install 'ovml[plots]'") from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained")
