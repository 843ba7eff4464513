"""Writing images and figures as PNG, and an empty matplotlib figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write, check_output, write_errors

Figure: TypeAlias = Any
"""A `matplotlib.figure.Figure`; matplotlib is optional, and is imported when something is drawn."""


def save_png(image: Image.Image | Figure, path: str | Path) -> Path:
    """Write an image or a figure as a PNG file, atomically.

    Args:
        image: A PIL image or a matplotlib figure.
        path: Its name ends in `.png`; missing folders are made.

    Raises:
        UserError: The name has another ending, or the file cannot be written.
    """
    path = Path(path)
    check_output(path, [".png"], overwrite=True)
    with write_errors(path), atomic_write(path) as beside:
        if isinstance(image, Image.Image):
            image.save(beside, "PNG", optimize=True)
        else:
            image.savefig(beside, format="png")
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches of 100 pixels; made without pyplot, which would open windows and keep global state.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("figures of an evaluation need matplotlib; pip install 'ovml[plots]'") from error
    return Figure(figsize=(width, height), dpi=100, layout="constrained")
