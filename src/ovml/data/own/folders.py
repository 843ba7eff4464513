"""One folder of images per label."""

from __future__ import annotations

from ovml.data.labels import some
from ovml.data.own.labelled import SPLITS, ImageIndex, LabelledSet, Rows
from ovml.utils.errors import UserError

ADVICE = "give each label a folder of its images, or a table of images and labels (labels.csv)"


def find_folders(index: ImageIndex) -> LabelledSet | None:
    """Images in folders named by their label, perhaps below `train/`, `val/` and `test/`; `None` without folders.

    A folder that holds all others is passed by. Images outside of the label folders are left out.

    Raises:
        UserError: The folders do not tell two labels, or splits stand beside other folders.
    """
    places = [] if index.file else [path.relative_to(index.root).parts[:-1] for path in index.paths]
    for depth in range(max(map(len, places), default=0)):  # of the label folders, or the splits
        inside = [place for place in places if len(place) > depth]
        tops = sorted({place[depth] for place in inside})
        inner = {place[depth] for place in inside if len(place) > depth + 1}
        if len(tops) > 1 or tops[0].lower() in SPLITS or not inner:
            break
    else:
        return None
    base = index.root.joinpath(*inside[0][:depth])
    with_labels = [top for top in tops if top.lower() in SPLITS and top in inner]
    others = [top for top in tops if top.lower() not in SPLITS]
    if with_labels and others:
        raise UserError(
            f"{base}: {some(with_labels)} seem to be splits and {some(others)} not; name them all train, val or test, "
            "or move the others away"
        )
    are_splits = not others
    splits: dict[str, Rows] = {}
    for path, place in zip(index.paths, places, strict=True):
        if label := place[depth + are_splits : depth + are_splits + 1]:
            role = SPLITS[place[depth].lower()] if are_splits else "train"
            splits.setdefault(role, Rows()).add(str(path), label)
    if len({name for rows in splits.values() for labels in rows.labels for name in labels}) < 2:
        raise UserError(f"{base}: all images stand in {some([f'{top}/' for top in tops])}, so no labels; {ADVICE}")
    loose = len(places) - sum(map(len, splits.values()))
    left_out = f"{loose:,} images outside of the label folders" if loose else ""
    return LabelledSet("one folder per label", splits, left_out=left_out)
