"""NUS-WIDE as rows of Hugging Face `datasets`: saved in a folder, or on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from ovml.data.base import Split
from ovml.data.cache import FEATURES, Table, cached_folder
from ovml.data.image_files import ImageCheck
from ovml.data.nuswide.files import SOURCE, read_vocabulary
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, label_key

ANNOTATIONS_ONLY = "Lxyhaha/NUS-WIDE"
"""The makers' own set on the Hub: two zip files of annotations, no pictures."""
COMBINE = (
    f"{ANNOTATIONS_ONLY} on the Hub holds annotations, no pictures; unpack its NUS-WIDE.zip and NUS_WID_Tags.zip and "
    "the official ImageList.zip beside the folder Flickr with the pictures, and give the folder of them all"
)


class SavedRows:
    """Rows that `DatasetDict.save_to_disk` wrote, or a set on the Hub, which is fetched when it is first asked for.

    Columns: `image`; `positive` and, if there are any, `negative`: lists of label names, of `datasets.ClassLabel`, or
    of ids in the vocabulary; `image_id` (default: the row's number). Files beside them: `Concepts81.txt` and
    `Concepts925.txt` or `NUS_WID_Tags/TagList1k.txt`.

    Args:
        root: The folder, or the set's name.
        cache_dir: See `ovml.data.cache.cache_root`.
    """

    def __init__(self, root: Path, cache_dir: str | None) -> None:
        self.root = root
        self.cache_dir = cache_dir

    @cached_property
    def splits(self) -> Any:
        """The rows as they are."""
        load = datasets.load_from_disk if self.root.is_dir() else datasets.load_dataset
        splits = self._try(lambda: load(self.root.as_posix()))
        names = set(splits) if isinstance(splits, datasets.DatasetDict) else set()
        if not {"train", "test"} <= names:
            raise UserError(
                f"{self.root}: the splits train and test are expected; found {', '.join(sorted(names)) or 'none'}; "
                "save both as one datasets.DatasetDict"
            )
        for split in ("train", "test"):
            columns = splits[split].column_names
            if not {"image", "positive"} <= set(columns):
                raise UserError(
                    f"{self.root}: the {split} split needs the columns image and positive; it has "
                    f"{', '.join(columns)} ({COMBINE})"
                )
        return splits

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The labels, from the lists beside the rows."""
        if self.root.is_dir():
            return read_vocabulary(self.root, "Concepts925.txt")
        from huggingface_hub import snapshot_download

        name, lists = self.root.as_posix(), ["*Concepts*.txt", "*TagList1k.txt"]
        folder = self._try(lambda: snapshot_download(name, repo_type="dataset", allow_patterns=lists))
        return read_vocabulary(Path(folder), "Concepts925.txt")

    @cached_property
    def exhaustive(self) -> bool:
        """Whether no row has a label in `negative`."""
        rows = [self.splits[split] for split in ("train", "test")]
        columns = [part.data.column("negative") for part in rows if "negative" in part.column_names]
        return not any(pc.sum(pc.list_value_length(column)).as_py() for column in columns)

    def table(self, split: Split) -> Table:
        """Rows of a split with labels as ids; the pictures are not copied.

        Raises:
            UserError: A label is not in the vocabulary.
        """
        rows = self.splits[split]
        columns: dict[str, Any] = {name: self._ids(split, name) for name in ("positive", "negative")}
        columns["image_id"] = map(str, rows["image_id"] if "image_id" in rows.column_names else range(len(rows)))
        features = datasets.Features({name: FEATURES[name] for name in columns})
        labels = datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()}, features)
        images = rows.select_columns(["image"]).cast_column("image", FEATURES["image"])
        with cached_folder(self.cache_dir, f"nuswide-rows-{split}", [], {"rows": rows._fingerprint}) as (folder, _):
            return Table(datasets.concatenate_datasets([images, labels], axis=1), {}, folder)

    def _ids(self, split: Split, column: str) -> list[list[int]]:
        rows = self.splits[split]
        if column not in rows.column_names:
            return [[]] * len(rows)
        ids = {label_key(name): number for number, name in enumerate(self.vocabulary)}
        class_names = getattr(getattr(rows.features[column], "feature", None), "names", None)
        known: dict[Any, int] = {}

        def id_of(label: Any) -> int:
            name = class_names[label] if class_names else label
            number = ids.get(label_key(name)) if isinstance(name, str) else name
            if not isinstance(number, int) or not 0 <= number < len(ids):
                raise UserError(
                    f"{self.root}: {name!r} in {column} of the {split} split is none of the {len(ids):,} labels of "
                    "Concepts925.txt and Concepts81.txt; mend the row or the list"
                )
            return known.setdefault(label, number)

        return [[known[x] if x in known else id_of(x) for x in labels or ()] for labels in rows[column]]

    def check(self, table: Table) -> ImageCheck:
        """Pictures that are neither part of the rows nor a file are missing."""
        content, paths = (pc.struct_field(table.rows.data.column("image"), key) for key in ("bytes", "path"))
        outside = np.flatnonzero(content.is_null().to_numpy())
        missing = [row for row in outside if not Path(paths[int(row)].as_py() or "").is_file()]
        return ImageCheck(len(table.rows), np.array(missing, np.int64), np.zeros(0, np.int64), table.folder)

    def _try(self, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except Exception as error:  # the libraries raise nearly anything
            what = "cannot be read" if self.root.is_dir() else "no such folder, and not to be had from the Hub"
            raise UserError(
                f"{self.root}: {what} ({' '.join(str(error).split())}); NUS-WIDE is handed out at {SOURCE}"
            ) from error
