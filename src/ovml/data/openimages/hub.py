"""Open Images as rows of Hugging Face `datasets`, as `vikhyatk/openimages-human-labels` on the Hub has them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovml.data.cache import FEATURES, Table
from ovml.data.openimages.annotations import MarkCollector, Marks
from ovml.data.openimages.csv import SOURCE
from ovml.utils.errors import UserError
from ovml.utils.progress import track
from ovml.vocabulary import label_key

logger = logging.getLogger(__name__)

COLUMNS = ("image", "image_id", "labels")
ROWS_AT_ONCE = 20_000


class HubRows:
    """Rows with the columns `image`, `image_id` and `labels`, a list of `{"label", "confidence"}`.

    A label is a machine id or a name. A name that several machine ids share could be any of them, so such a mark is
    left out (unknown) and counted.

    Args:
        root: The set's name on the Hub (`owner/name`), or a folder of its Parquet files.
        names: Name of every machine id. Without them the labels themselves serve as ids.
        streaming: Read rows from the Hub as they are needed.
    """

    def __init__(self, root: Path, names: Mapping[str, str] | None, streaming: bool = False) -> None:
        self.root = root
        self.streaming = streaming
        self._rows: dict[str, Any] = {}
        self._id_of: dict[str, str] = {}
        self._shared: set[str] = set()
        for label, name in (names or {}).items():
            key = label_key(name)
            if key in self._id_of:
                self._shared.add(key)
            self._id_of[key] = label

    @classmethod
    def is_it(cls, root: Path) -> bool:
        """Whether `root` is a folder of Parquet files or, where there is no such folder, looks like `owner/name`."""
        if root.is_dir():
            return any(any(root.glob(pattern)) for pattern in ("*.parquet", "data/*.parquet"))
        # Below a folder that is there it is a mistyped path.
        return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", root.as_posix())) and not root.parent.exists()

    def rows(self, split: str) -> Any:
        """Rows of a split as they are.

        Raises:
            UserError: They cannot be had, or have other columns.
        """
        if split not in self._rows:
            try:
                rows = datasets.load_dataset(self.root.as_posix(), split=split, streaming=self.streaming)
            except Exception as error:  # the library raises nearly anything
                what = "cannot be read" if self.root.is_dir() else "no such folder, and not to be had from the Hub"
                raise UserError(
                    f"{self.root}: {split} split of Open Images: {what} ({' '.join(str(error).split())}); "
                    f"the set is handed out at {SOURCE}"
                ) from error
            self._check_columns(rows, split)
            self._rows[split] = rows
        return self._rows[split]

    def inputs(self, split: str) -> list[Path]:
        """Files that the marks of a split are read from.

        Raises:
            UserError: The rows are streamed, so that there is no file.
        """
        if self.streaming:
            raise UserError(
                f"{self.root}: labels cannot be counted in a stream; give --data.class_descriptions, "
                "--data.classes_trainable and --data.unseen_file, or set --data.streaming false"
            )
        return [Path(file["filename"]) for file in self.rows(split).cache_files]

    def read(self, split: str, label_ids: Sequence[str] = ()) -> tuple[pa.Array, Marks]:
        """Image ids of a split, and its marks; see `ovml.data.openimages.csv.read_marks`.

        Raises:
            UserError: A confidence is neither 0 nor 1.
        """
        collector, pieces, offset, left_out = MarkCollector(label_ids), [], 0, 0
        for ids, lists in self._blocks(split):
            marks = lists.flatten()
            label = marks.field("label").cast(pa.string()).fill_null("").dictionary_encode()
            known = [self.id_of(name) for name in label.dictionary.to_pylist()]
            label = pa.DictionaryArray.from_arrays(label.indices, pa.array(known, pa.string()))
            confidence = marks.field("confidence").to_numpy(zero_copy_only=False)
            row = pc.list_parent_indices(lists).to_numpy()
            for odd in np.flatnonzero((confidence != 0) & (confidence != 1))[:1]:
                raise self._odd(split, ids[int(row[odd])].as_py(), confidence[odd])
            keep = np.isin(label.indices.to_numpy(), [n for n, name in enumerate(known) if name is not None])
            left_out += int((~keep).sum())
            collector.add(row[keep] + offset, label.filter(pa.array(keep)), confidence[keep].astype(np.int64))
            pieces.append(ids)
            offset += len(ids)
        if left_out:
            logger.warning(
                "%s: %s labels of the %s split have a name that several classes share; they count as unknown",
                *(self.root, f"{left_out:,}", split),
            )
        return pa.chunked_array(pieces, pa.string()).combine_chunks(), collector.marks(offset)

    def id_of(self, label: str) -> str | None:
        """Machine id that a label of the rows means; `None` where it could be several."""
        key = label_key(label)
        return None if not key or key in self._shared else self._id_of.get(key, label)

    def paths(self, split: str, image_ids: pa.Array) -> pa.Array:
        """Nothing: pictures are part of the rows."""
        return pa.nulls(len(image_ids), pa.string())

    def finish(self, split: str, table: Table) -> Table:
        """The table with the rows' pictures, which are not copied."""
        images = self.rows(split).select_columns(["image"]).cast_column("image", FEATURES["image"])
        labels = table.rows.remove_columns("image")
        return Table(datasets.concatenate_datasets([images, labels], axis=1), table.counts, table.folder)

    def stream(self, split: str, label_ids: Sequence[str]) -> datasets.IterableDataset:
        """Rows of a split as a stream, label ids being places in `label_ids`."""
        number_of = {label: number for number, label in enumerate(label_ids)}

        def convert(row: dict[str, Any]) -> dict[str, Any]:
            marked: dict[int, set[bool]] = {}
            for mark in row["labels"]:
                if mark["confidence"] not in (0, 1):
                    raise self._odd(split, row["image_id"], mark["confidence"])
                label = self.id_of(mark["label"] or "")
                if label in number_of:
                    marked.setdefault(number_of[label], set()).add(mark["confidence"] == 1)
            positive, negative = (sorted(n for n, is_in in marked.items() if is_in == {v}) for v in (True, False))
            return {"image": row["image"], "positive": positive, "negative": negative, "image_id": row["image_id"]}

        rows = self.rows(split).select_columns(list(COLUMNS)).cast_column("image", datasets.Image(decode=False))
        return rows.map(convert, remove_columns=["labels"], features=FEATURES)

    def _blocks(self, split: str) -> Iterator[tuple[pa.Array, pa.ListArray]]:
        rows = self.rows(split).select_columns(["image_id", "labels"]).with_format("arrow")
        blocks = rows.iter(ROWS_AT_ONCE)
        for table in track(blocks, f"reading labels of {self.root}", total=-(-len(rows) // ROWS_AT_ONCE)):
            ids, lists = (table.column(name).combine_chunks() for name in ("image_id", "labels"))
            yield ids.cast(pa.string()), lists

    def _check_columns(self, rows: Any, split: str) -> None:
        if rows.features is None:  # a stream may not know its columns
            return
        schema = rows.features.arrow_schema
        item = getattr(schema.field("labels").type, "value_type", None) if "labels" in schema.names else None
        fields = {field.name: field.type for field in getattr(item, "fields", ())}
        whole = set(COLUMNS) <= set(schema.names) and {"label", "confidence"} <= set(fields)
        if not whole or fields["label"] != pa.string():
            raise UserError(
                f"{self.root}: the {split} split needs the columns image, image_id and labels, a list of label (a "
                f"string) and confidence; it has {', '.join(f'{f.name}: {f.type}' for f in schema)}"
            )

    def _odd(self, split: str, image_id: str, confidence: float) -> UserError:
        return UserError(
            f"{self.root}: image {image_id} of the {split} split has a label of confidence {confidence:g}, but "
            "human-verified labels have 0 or 1"
        )
