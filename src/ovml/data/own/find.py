"""Finds the form of labelled images in a folder."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from ovml.data.own.coco import find_coco
from ovml.data.own.folders import find_folders
from ovml.data.own.labelled import ImageIndex, LabelledSet
from ovml.data.own.memory import find_arrow
from ovml.data.own.tables import TABLES, Options, find_tables, lists_images, read_table
from ovml.data.own.voc import find_voc
from ovml.data.own.yolo import find_yolo
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
    index = ImageIndex(root)
    read = cache(read_table)  # more than one question is asked of a table
    found = find_arrow(index, options) or find_coco(index) or find_yolo(index) or find_voc(index)
    if found is None and (tables := index.files(*TABLES)):
        if root.is_dir() and not (options["image_column"] or any(lists_images(table, index, read) for table in tables)):
            with suppress(UserError):  # a table of something else may stand beside label folders
                found = find_folders(index)
        found = found or find_tables(index, read, options)
    if found is None and index.damaged:
        raise index.damaged[0]
    if found is None:
        found = find_folders(index)
    if found is None or not any(map(len, found.splits.values())):
        raise UserError(f"{root}: no labelled images; root=FOLDER holds {FORMS}")
    return found
