"""One folder of images per label."""

from __future__ import annotations

from pathlib import Path

from ovml.data.own.labelled import ImageIndex, LabelledSet, Rows, split_of


def find_folders(root: Path, index: ImageIndex) -> LabelledSet | None:
    """Images in folders named by their label, perhaps below `train/`, `val/` and `test/`; `None` without them."""
    splits: dict[str, Rows] = {}
    places = [path.relative_to(root).parts[:-1] for path in index.paths]
    tops = {place[0] for place in places if place}
    has_splits = bool(tops) and all(split_of(top) for top in tops)
    for path, place in zip(index.paths, places, strict=True):
        role, label = (split_of(place[0]), place[1:2]) if has_splits and place else ("train", place[:1])
        if not label:
            return None
        splits.setdefault(role or "train", Rows()).add(str(path), list(label))
    return LabelledSet("one folder per label", splits) if splits else None
