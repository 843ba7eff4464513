"""Open Images as rows of Hugging Face `datasets`, in the form of `vikhyatk/openimages-human-labels` on the Hub."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovml.data.cache import Table
from ovml.data.hub.load import LoadedSet, download_hint, is_hub_name, load_set
from ovml.data.hub.rows import beside_images, streamed_rows
from ovml.data.openimages.annotations import AnnotationCollector, Annotations
from ovml.data.openimages.csv import SOURCE
from ovml.data.paths import PathCheck
from ovml.utils.errors import UserError
from ovml.utils.progress import track
from ovml.vocabulary import label_key

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 20_000


class HubRows:
    """Rows with the columns `image`, `image_id` and `labels`, a list of `{"label", "confidence"}`.

    A label is a machine id or a name. Annotations with a name that several machine ids share are ambiguous, so they are
    skipped (unknown) and counted.

    Args:
        root: The set's name on the Hub (`owner/name`), or a folder of its Parquet files.
        names: Name of every machine id. Default: the labels are their own ids.
        streaming: Read rows as they are needed, without preparing the set on disk.
    """

    def __init__(self, root: Path, names: Mapping[str, str] | None, streaming: bool = False) -> None:
        self.root = root
        self.streaming = streaming
        keys = {label: label_key(name) for label, name in (names or {}).items()}
        uses = Counter(keys.values())
        self._id_of = {key: label if uses[key] == 1 else None for label, key in keys.items()}

    @classmethod
    def is_it(cls, root: Path) -> bool:
        """Whether `root` is a folder of Parquet files or, if there is no such folder, looks like `owner/name`."""
        if root.is_dir():
            return any(any(root.glob(pattern)) for pattern in ("*.parquet", "data/*.parquet"))
        return is_hub_name(root)

    def rows(self, split: str) -> Any:
        """Rows of a split, unconverted.

        Raises:
            UserError: They cannot be loaded, or have other columns.
        """
        with download_hint(self.root, SOURCE, f"{split} split of Open Images: "):
            splits = self._source.splits
        if split not in splits:
            raise UserError(
                f"{self.root}: no {split} split, only {', '.join(splits)}; download the whole set from {SOURCE}"
            )
        self._check_columns(splits[split], split)
        return splits[split]

    @cached_property
    def _source(self) -> LoadedSet:
        return load_set(self.root.as_posix(), streaming=self.streaming)

    def inputs(self, split: str) -> list[Path]:
        """Files that the annotations of a split are read from.

        Raises:
            UserError: The rows are streamed, so there is no file.
        """
        if self.streaming:
            raise UserError(
                f"{self.root}: labels cannot be counted in a stream; give class_descriptions=FILE, "
                "classes_trainable=FILE, and unseen_file=FILE instead of num_unseen, or set streaming=false"
            )
        return [Path(file["filename"]) for file in self.rows(split).cache_files]

    def read(self, split: str, label_ids: Sequence[str] = ()) -> tuple[pa.Array, Annotations]:
        """Image ids of a split, and its annotations; see `ovml.data.openimages.csv.read_annotations`.

        Raises:
            UserError: A confidence is neither 0 nor 1.
        """
        collector, pieces, offset, left_out = AnnotationCollector(label_ids), [], 0, 0
        for ids, lists in self._blocks(split):
            annotations = lists.flatten()
            label = annotations.field("label").cast(pa.string()).fill_null("").dictionary_encode()
            known = [self.id_of(name) for name in label.dictionary.to_pylist()]
            label = pa.DictionaryArray.from_arrays(label.indices, pa.array(known, pa.string()))
            confidence = annotations.field("confidence").to_numpy(zero_copy_only=False)
            row = pc.list_parent_indices(lists).to_numpy()
            for odd in np.flatnonzero((confidence != 0) & (confidence != 1))[:1]:
                raise self._odd(split, ids[int(row[odd])].as_py(), confidence[odd])
            keep = np.array([name is not None for name in known], dtype=bool)[label.indices.to_numpy()]
            left_out += int((~keep).sum())
            collector.add(row[keep] + offset, label.filter(pa.array(keep)), confidence[keep].astype(np.int64))
            pieces.append(ids)
            offset += len(ids)
        if left_out:
            logger.warning(
                "%s: %s labels of the %s split have a name that several classes share; they count as unknown",
                *(self.root, f"{left_out:,}", split),
            )
        return pa.chunked_array(pieces, pa.string()).combine_chunks(), collector.annotations(offset)

    def id_of(self, label: str) -> str | None:
        """Machine id of a label of the rows; `None` if it is ambiguous."""
        key = label_key(label)
        return self._id_of.get(key, label) if key else None

    def paths(self, split: str, image_ids: pa.Array) -> pa.Array:
        """Null paths, since the images are part of the rows."""
        return pa.nulls(len(image_ids), pa.string())

    def finish(self, split: str, table: Table) -> Table:
        """Add the rows' images to the table, without copying them."""
        return replace(table, rows=beside_images(self.rows(split), "image", table.rows.remove_columns("image")))

    def stream(self, split: str, label_ids: Sequence[str], path_check: PathCheck) -> datasets.IterableDataset:
        """Rows of a split as a stream, with labels as indices into `label_ids`."""
        number_of = {label: number for number, label in enumerate(label_ids)}

        def convert(row: Mapping[str, Any]) -> dict[str, Any]:
            annotated: dict[int, set[bool]] = {}
            for annotation in row["labels"]:
                if annotation["confidence"] not in (0, 1):
                    raise self._odd(split, row["image_id"], annotation["confidence"])
                label = self.id_of(annotation["label"] or "")
                if label in number_of:
                    annotated.setdefault(number_of[label], set()).add(annotation["confidence"] == 1)
            positive, negative = (sorted(n for n, is_in in annotated.items() if is_in == {v}) for v in (True, False))
            return {"image": row["image"], "positive": positive, "negative": negative, "image_id": row["image_id"]}

        where = f"{self.root}: {split} split"
        return streamed_rows(self.rows(split), "image", ("image_id", "labels"), convert, path_check, where)

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
        whole = {"image", "image_id", "labels"} <= set(schema.names) and {"label", "confidence"} <= set(fields)
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
