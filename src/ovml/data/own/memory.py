"""Labelled images in memory, and sets that `datasets` reads: Parquet, Arrow, data frames, pairs of image and labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
from PIL import Image

from ovml.data.hub.load import load_set
from ovml.data.labels import class_names
from ovml.data.own.labelled import ImageIndex, LabelledSet, Rows, split_of
from ovml.data.own.tables import IMAGE_COLUMNS, Options, find_column, table_rows
from ovml.utils.errors import UserError


def find_arrow(index: ImageIndex, options: Options) -> LabelledSet | None:
    """Parquet files, or a folder that `save_to_disk` wrote; `None` without them.

    Raises:
        UserError: They cannot be read, or have no column of images or labels.
    """
    root = index.root
    saved = index.file is None and any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    files = index.files(".parquet")
    if not saved and not files:
        return None
    if saved:
        splits = load_set(str(root)).splits
    else:
        of_role: dict[str, list[str]] = {}
        for file in files:
            of_role.setdefault(split_of(file.stem) or "train", []).append(str(file))
        splits = load_set("parquet", data_files=of_role).splits
    for rows in splits.values():
        for name in [name for name, feature in rows.features.items() if _is_image_struct(feature)]:
            index.inside.check_images(rows.data.column(name), str(index.file or root))
    file = files[0] if files else root / "state.json"
    return from_memory(splits, options, partial(index.path, file=file))


def from_memory(data: Any, options: Options, locate: Callable[..., Any] | None = None) -> LabelledSet:
    """Read a `datasets.Dataset`, a pandas `DataFrame`, pairs of image and labels, or several of them by split.

    Args:
        data: The images; a mapping of split names, such as `datasets.DatasetDict`, has several of them. A torch data
            set is read once.
        options: Of `table_rows`.
        locate: Turns a path in a column into one that can be opened.

    Raises:
        UserError: It is something else, or lacks images or labels.
    """
    parts = dict(data) if isinstance(data, Mapping) else {"": data}
    splits: dict[str, Rows] = {}
    names: dict[str, None] = {}
    forms: dict[str, None] = {}
    for name, part in parts.items():
        where = f"data, {name}" if name else "data"
        if isinstance(part, datasets.Dataset):
            form, (found, own) = "datasets", _of_dataset(part, where, options, locate or _as_it_is)
        elif hasattr(part, "columns") and hasattr(part, "iloc"):
            columns = {str(column): part[column].tolist() for column in part.columns}
            form, (found, own) = "data frame", table_rows(columns, where, locate or _as_it_is, **options)
        elif hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, (str, bytes)):
            form, (found, own) = "pairs of image and labels", _of_pairs(part, where)
        else:
            raise UserError(
                f"{where}: a {type(part).__name__}; give a folder, a file, a datasets.Dataset, a pandas DataFrame, or "
                "pairs of image and labels"
            )
        forms[form] = None
        names |= dict.fromkeys(own)
        for role, rows in found.items():
            splits[split_of(name) or name if name else role] = rows
    return LabelledSet(" and ".join(forms), splits, tuple(names))


def _of_dataset(
    rows: datasets.Dataset, where: str, options: Options, locate: Callable[..., Any]
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    features = rows.features
    images = [name for name, feature in features.items() if _holds_images(feature)]
    given = options["image_column"] or next(iter(images), None)
    image = find_column(features, given, IMAGE_COLUMNS, where, "image_column")
    others = [name for name in features if name != image and name not in images]
    columns: dict[str, Sequence[Any]] = {name: rows[name][:] for name in others}
    names: tuple[str, ...] = ()
    for name in others:
        if name == (options["label_column"] or name):
            names = class_names(features[name]) or names
    inside = _holds_images(features[image])
    columns[image] = range(len(rows)) if inside else rows[image][:]
    locate = _as_it_is if inside else locate
    found, header = table_rows(columns, where, locate, **{**options, "image_column": image})
    for own in found.values() if inside else ():
        own.images = rows.select(own.images).select_columns([image])
    return found, header or names


def _as_it_is(image: Any, role: str) -> Any:
    return image


def _holds_images(feature: Any) -> bool:
    return _is_image_struct(feature) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _is_image_struct(feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or (isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _of_pairs(pairs: Any, where: str) -> tuple[dict[str, Rows], tuple[str, ...]]:
    names = tuple(map(str, getattr(pairs, "classes", ())))
    rows = Rows()
    for number in range(len(pairs)):
        try:
            image, labels = pairs[number]
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: index {number}: expected an image and its labels; give pairs of both") from error
        if isinstance(image, Image.Image) and not isinstance(pairs, (list, tuple)):
            image = _encoded(image)  # smaller in memory than its pixels
        labels = labels.tolist() if hasattr(labels, "tolist") else labels
        labels = list(labels) if isinstance(labels, (list, tuple, set)) else [] if labels is None else [labels]
        rows.add(image, labels)
    return {"train": rows}, names
