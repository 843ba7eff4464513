"""NUS-WIDE as rows of Hugging Face `datasets`, saved in a folder or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ovml.data.base import Split
from ovml.data.cache import Table
from ovml.data.hub.load import download_hint, load_set
from ovml.data.hub.rows import Columns, RowMaker, stored_rows
from ovml.data.labels import ColumnPath, LabelReader
from ovml.data.nuswide.files import SOURCE, Layout, read_vocabulary
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

ANNOTATIONS_ONLY = "Lxyhaha/NUS-WIDE"
"""The authors' data set on the Hub: two zip files of annotations, no images."""
COMBINE = (
    f"{ANNOTATIONS_ONLY} on the Hub holds annotations, no images; unpack its NUS-WIDE.zip and NUS_WID_Tags.zip and "
    "the official ImageList.zip beside the folder Flickr with the images, and give their folder"
)


class SavedRows(Layout):
    """Rows written by `DatasetDict.save_to_disk`, or a data set on the Hub, which is downloaded on first use.

    Columns: `image`; `positive` and optionally `negative`: lists of label names, of `datasets.ClassLabel`, or of ids in
    the vocabulary; optionally `image_id` (default: the row number). Files beside them: `Concepts81.txt`, and
    `Concepts925.txt` or `NUS_WID_Tags/TagList1k.txt`.
    """

    @cached_property
    def splits(self) -> Mapping[str, Any]:
        """The rows of each split, unconverted."""
        with download_hint(self.root, SOURCE):
            splits = load_set(self.root.as_posix()).splits
        if not {"train", "test"} <= set(splits):
            raise UserError(
                f"{self.root}: the splits train and test are expected; found {', '.join(sorted(splits))}; "
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
        """The labels, read from the lists beside the rows."""
        folder = self.root
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            lists = ["*Concepts*.txt", "*TagList1k.txt"]
            with download_hint(self.root, SOURCE):
                folder = Path(snapshot_download(folder.as_posix(), repo_type="dataset", allow_patterns=lists))
        return read_vocabulary(folder, self.seen_list)

    @cached_property
    def exhaustive(self) -> bool:
        """Whether no row has a label in `negative`."""
        rows = [self.splits[split] for split in ("train", "test")]
        columns = [part.data.column("negative") for part in rows if "negative" in part.column_names]
        return not any(pc.sum(pc.list_value_length(column)).as_py() for column in columns)

    def table(self, split: Split) -> Table:
        """Rows of a split with labels as ids, without copying images.

        Raises:
            UserError: A label is not in the vocabulary.
        """
        rows = self.splits[split]

        def find(column: str) -> ColumnPath | None:
            return ColumnPath.find(column, rows.features, str(self.root)) if column in rows.features else None

        def reader(path: ColumnPath) -> LabelReader:
            unknown = (
                f"{{}} in {path.column} of the {split} split is none of the {len(self.vocabulary):,} labels of "
                "Concepts925.txt and Concepts81.txt; correct the row or the list"
            )
            return LabelReader(self.vocabulary, path.names, unknown=unknown)

        positive, negative = ColumnPath.find("positive", rows.features, str(self.root)), find("negative")
        columns = Columns("image", positive, negative, find("image_id"))
        maker = RowMaker(columns, str(self.root), reader(positive), reader(negative or positive))
        settings = {"rows": rows._fingerprint, "labels": self.vocabulary.names}
        return stored_rows(rows, maker, self.cache_dir, f"nuswide-rows-{split}", settings)
