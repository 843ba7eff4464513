"""XMP sidecars: the labels of images in files beside them, where programs for photographs read keywords."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ovml.inference.xmp_text import EMPTY, HIERARCHY, SUBJECT, check_label, merge
from ovml.utils.errors import UserError, error_at
from ovml.utils.files import FULL, atomic_write, read_text
from ovml.utils.images import ImageLike
from ovml.utils.urls import is_url

NAMES = ("photo.jpg.xmp", "photo.xmp")
"""How the sidecar of `photo.jpg` may be named: as in digiKam and darktable, or as Adobe's programs name it."""
MOST_BYTES = 2**24
"""Size of the largest sidecar that is read; those of darktable hold the whole history of an image."""


class Sidecars(NamedTuple):
    """Counts of images: all, those whose sidecar was made or changed, and those that had an error."""

    images: int = 0
    changed: int = 0
    errors: int = 0


class _Tagger(Protocol):
    labels: tuple[str, ...]

    def tag(self, images: Iterable[ImageLike], on_error: Literal["row"]) -> Iterator[tuple[ImageLike, Any]]: ...


def write_sidecars(
    tagger: _Tagger,
    images: Iterable[ImageLike],
    parents: Mapping[str, str] | None = None,
    xmp_name: str = NAMES[0],
    on_image: Callable[[Sidecars, UserError | None], None] | None = None,
) -> Sidecars:
    """Tag images, and add the labels of each to the sidecar beside it: see `add_labels`. Images are not touched.

    Each sidecar is written as soon as its image is tagged, and only if something is missing there. So a run that was
    interrupted is just run again. Labels of an earlier run stay.

    Args:
        tagger: A `Tagger`; its `top_k` and `threshold` choose the labels of an image.
        images: Paths.
        parents: The more general label above a label, such as `{"dog": "animal"}`, which may have one itself.
        xmp_name: One of `NAMES`.
        on_image: Called after each image with the counts so far, and the image's error, if it cannot be read or its
            sidecar cannot be read or written. The sidecar then stays as it was.

    Raises:
        UserError: XMP cannot hold a label, a label is above itself in `parents`, or `xmp_name` is none of `NAMES`.
        OSError: The disk is full or broken.
    """
    if xmp_name not in NAMES:
        raise UserError(f"xmp_name must be one of {', '.join(NAMES)}; got {xmp_name!r}")
    for label in tagger.labels:
        _path(label, parents or {})
    counts = Sidecars()
    for image, tags in tagger.tag(images, on_error="row"):
        error, changed = tags if isinstance(tags, UserError) else None, False
        if error is None:
            try:
                changed = add_labels(sidecar(image, xmp_name), [label for label, _ in tags], parents)
            except UserError as failed:
                error = failed
        counts = Sidecars(counts.images + 1, counts.changed + changed, counts.errors + (error is not None))
        if on_image is not None:
            on_image(counts, error)
    return counts


def sidecar(image: ImageLike, xmp_name: str = NAMES[0]) -> Path:
    """The path of an image's sidecar.

    Args:
        image: A path.
        xmp_name: One of `NAMES`.

    Raises:
        UserError: The image is not a path.

    >>> sidecar("a/photo.jpg").as_posix(), sidecar("a/photo.jpg", "photo.xmp").as_posix()
    ('a/photo.jpg.xmp', 'a/photo.xmp')
    """
    if is_url(image) or not isinstance(image, (str, os.PathLike)):
        shown = image if isinstance(image, str) else f"image ({type(image).__name__})"
        raise UserError(f"{shown}: has no folder for a sidecar; give the path of a file")
    path = Path(image)
    return path.with_name(f"{path.name}.xmp") if xmp_name == NAMES[0] else path.with_suffix(".xmp")


def add_labels(path: str | Path, labels: Sequence[str], parents: Mapping[str, str] | None = None) -> bool:
    """Add labels to a sidecar; returns whether it was changed.

    Labels are added to `dc:subject`. Those with a parent are added to Lightroom's `lr:hierarchicalSubject` too, as
    paths such as `animal|dog`, in which a `|` of a name becomes `/`. What is there already is not added again, and
    everything else in the sidecar stays. The new file takes the place of the old one in one step.

    Args:
        path: The sidecar. It is made if it is not there and there are labels.
        labels: Names.
        parents: See `write_sidecars`.

    Raises:
        UserError: The sidecar is no XMP, larger than `MOST_BYTES`, hostile, or cannot be read or written.
        OSError: The disk is full or broken.
    """
    paths = [_path(label, parents or {}) for label in labels]
    if not paths:
        return False
    hierarchy = ["|".join(name.replace("|", "/") for name in names) for names in paths if len(names) > 1]
    path = Path(os.path.realpath(path))  # the file that a link leads to, not the link
    try:
        there = path.exists()
        before = read_text(path, "sidecar", "in XMP", MOST_BYTES) if there else EMPTY
        with error_at(path, "repair or remove it"):
            after = merge(before, {SUBJECT: labels, HIERARCHY: hierarchy})
        if after == before:
            return False
        with atomic_write(path) as beside:
            beside.write_bytes(after.encode())
            if there:
                shutil.copymode(path, beside)
    except OSError as error:
        if error.errno in (*FULL, errno.EIO):
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); check the folder") from error
    return True


def _path(label: str, parents: Mapping[str, str]) -> list[str]:
    """A label below all that are above it, the most general first.

    >>> _path("dog", {"dog": "mammal", "mammal": "animal"})
    ['animal', 'mammal', 'dog']
    """
    names = [label]
    while (parent := parents.get(names[0])) is not None:
        if parent in names:
            raise UserError(f"parents: {parent!r} is above itself; remove one of its parents")
        names.insert(0, parent)
    for name in names:
        check_label(name)
    return names
