"""Finds the form of labelled images in a folder."""

from __future__ import annotations

from pathlib import Path

from ovml.data.own.detection import find_coco, find_voc, find_yolo
from ovml.data.own.folders import find_folders
from ovml.data.own.labelled import ImageIndex, LabelledSet
from ovml.data.own.memory import Options, find_arrow
from ovml.data.own.tables import TABLES, find_tables
from ovml.utils.errors import UserError

FORMS = (
    "a table (CSV, TSV, JSON Lines), COCO, Pascal VOC or YOLO annotations, Parquet files, or one folder of images per "
    "label"
)


def find_set(root: Path, options: Options) -> LabelledSet:
    """Find the form of labelled images in a folder, or in a file that lists them, and read them.

    Raises:
        UserError: There is no such folder, it has no form that ovml knows, or is damaged.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder; root=FOLDER holds {FORMS}")
    suffix = root.suffix.lower() if root.is_file() else None
    index = ImageIndex(root.parent if suffix else root)
    found = None
    if suffix in (None, ".parquet"):
        found = find_arrow(root, index, options)
    if found is None and suffix in (None, ".json"):
        found = find_coco(root, index)
    if found is None and suffix in (None, ".yaml", ".yml"):
        found = find_yolo(root, index)
    if found is None and suffix is None:
        found = find_voc(root, index)
    if found is None and suffix in (None, *TABLES):
        found = find_tables(root, index, **options)
    if found is None and suffix is None:
        found = find_folders(root, index)
    if found is None or not any(map(len, found.splits.values())):
        raise UserError(f"{root}: no labelled images; root=FOLDER holds {FORMS}")
    return found
