"""Open Images: human-verified image-level labels, thousands of them seen and 400 unseen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ovml.data.base import Split
from ovml.data.cache import Table, cached_folder, cached_table, record_batch
from ovml.data.folder import FolderDataModule
from ovml.data.openimages.csv import SOURCE
from ovml.data.openimages.files import OpenImagesFiles, find_class_file, read_class_list, read_descriptions
from ovml.data.openimages.hub import HubRows
from ovml.data.openimages.unseen import published_unseen, read_unseen
from ovml.utils.errors import UserError, check_whole
from ovml.vocabulary import LabelVocabulary

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 50_000
OVER_100 = 101
"""Default of `min_train_images` without a list of trainable classes."""
PUBLISHED_SIZE = 400
"""Number of unseen labels that are counted where the published list does not apply."""


class OpenImagesDataModule(FolderDataModule):
    """Open Images (Kuznetsova et al., IJCV 2020), V4 and later: human-verified labels of whole images.

    A label is present (verified, Confidence 1), absent (verified, 0) or, for most pairs of image and label, unknown.
    Pairs annotated both ways are unknown too. Labels are keyed by machine id, since many share a name.

    The seen labels are the trainable classes; the unseen labels are the 400 of the literature, a published list. The
    rows of a split are the images of its annotations; for validation and test the images of the image
    list, if there is one, even without annotations.

    `root` holds `{train,validation,test}-annotations-human-imagelabels.csv`, `class-descriptions.csv`,
    `classes-trainable.txt`, or their later names (`oidv7-...`), and images `{split}/{ImageID}.jpg`. Or it
    is a set on the Hub such as `vikhyatk/openimages-human-labels`, or a folder of its Parquet files, with columns
    `image`, `image_id` and `labels`. See docs/data/openimages.md.

    Args:
        root: Folder of the data set, or its name on the Hub.
        num_unseen: Number of unseen labels that are counted afresh: those present in most test images that are not
            seen. If the test split has fewer, all are used, with a warning. Default: the published list; or 400, where
            labels are names without machine ids.
        unseen_file: List of the unseen labels, one machine id per line; or BiAM's `top_400_unseen.csv`, beside which
            its `unseen_labels.pkl` lies.
        min_train_images: Minimum number of training images in which a trainable class is present to be a seen label.
            Default: no minimum. It requires reading the training annotations.
        classes_trainable: List of the trainable classes. Default: the one in `root`. For a set on the Hub the labels
            that are present in over 100 training images (or `min_train_images`).
        class_descriptions: Names of the machine ids. Default: the file in `root`. For a set on the Hub the labels
            themselves, if they are names.
        streaming: Read rows of a set on the Hub as they are needed, without storing it; requires the three files above.
        streamed_rows: Number of rows of a streamed training split: the length of an epoch.
        kwargs: See `FolderDataModule` and `MultiLabelDataModule`.

    Raises:
        UserError: There is no such folder, or an argument is out of range. Reading raises one if a file is missing or
            malformed, a class has no name, an unseen label is seen, or a split is empty.

    Example:
        ```yaml
        data:
          class_path: ovml.data.OpenImagesDataModule
          init_args:
            root: /data/open-images-v4
            batch_size: 64
        ```
    """

    title = "Open Images"
    source = SOURCE
    exhaustive = False

    def __init__(
        self,
        root: str,
        num_unseen: int | None = None,
        unseen_file: str | None = None,
        min_train_images: int | None = None,
        classes_trainable: str | None = None,
        class_descriptions: str | None = None,
        streaming: bool = False,
        streamed_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        check_whole(self, 1, num_unseen=num_unseen, min_train_images=min_train_images, streamed_rows=streamed_rows)
        if streaming and not self.is_hub:
            raise UserError(f"{self.root}: a folder of images cannot be streamed; remove data.streaming")
        self.num_unseen = num_unseen
        self.unseen_file = unseen_file
        self.min_train_images = min_train_images
        self.classes_trainable = classes_trainable
        self.class_descriptions = class_descriptions
        self.streaming = streaming
        self.streamed_rows = streamed_rows

    def check_root(self) -> None:
        """Raise a `UserError` unless the root is a folder or may be a set on the Hub."""
        self.is_hub = HubRows.is_it(self.root)
        if not self.is_hub:
            super().check_root()

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """The seen labels in the order of their list, then the unseen ones, the most frequent first."""
        return LabelVocabulary.from_ids(self.seen_ids, self.unseen_ids, self.names)

    @property
    def label_ids(self) -> list[str]:
        """Machine id of every label of the vocabulary."""
        return self.seen_ids + self.unseen_ids

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Name of every machine id."""
        if self._descriptions is not None:
            return self._descriptions
        labels = {*self.positives("train"), *self.positives("test")}
        if some := sorted(label for label in labels if label.startswith("/")):
            raise UserError(
                f"{self.root}: labels such as {some[0]} are machine ids; give their names "
                f"(class_descriptions=FILE, class-descriptions.csv from {SOURCE})"
            )
        return {label: label for label in labels}

    @cached_property
    def seen_ids(self) -> list[str]:
        """Machine ids of the seen labels."""
        path = self._class_file("classes-trainable.txt", self.classes_trainable)
        trainable = read_class_list(path, self.names) if path else sorted(self.names)
        minimum = self.min_train_images or (None if path else OVER_100)
        if minimum is None:
            return trainable
        positives = self.positives("train")
        seen = [label for label in trainable if positives.get(label, 0) >= minimum]
        if not seen:
            raise UserError(f"{self.root}: no label is present in {minimum:,} training images; lower min_train_images")
        return seen

    @cached_property
    def unseen_ids(self) -> list[str]:
        """Machine ids of the unseen labels."""
        seen = set(self.seen_ids)
        if (listed := self._listed_unseen) is not None:
            if both := [label for label in listed if label in seen]:
                raise UserError(
                    f"{self.unseen_file or 'the published list of unseen labels'}: {both[0]} ({self.names[both[0]]}) "
                    f"is a seen label, as are {len(both) - 1} others of the list; unseen labels must not be trained "
                    "on, so remove them, or count afresh (num_unseen=400)"
                )
            return listed
        positives = self.positives("test")
        others = [label for label, count in positives.items() if count and label not in seen]
        wanted = self.num_unseen or PUBLISHED_SIZE
        unseen = sorted(others, key=lambda label: (-positives[label], label))[:wanted]
        if not unseen:
            raise UserError(
                f"{self.root}: no label outside the {len(seen):,} seen ones is present in a test image, so none is "
                f"unseen; download the annotations of the test split from {SOURCE}"
            )
        if nameless := [label for label in unseen if label not in self.names]:
            raise UserError(
                f"{self.root}: the test annotations have {nameless[0]}, which is not in the class descriptions; "
                "use both files of the same version"
            )
        if len(unseen) < wanted:
            logger.warning(
                "%s: %s labels outside the seen ones are present in test images, fewer than num_unseen %s; "
                "results on them are not comparable with published ones",
                *(self.root, f"{len(unseen):,}", f"{wanted:,}"),
            )
        return unseen

    @property
    def _listed_unseen(self) -> list[str] | None:
        """The labels of the unseen file, or else the published ones; `None` if they are to be counted."""
        if self.unseen_file is not None:
            return read_unseen(Path(self.unseen_file).expanduser(), self.names)
        if self.num_unseen is not None or self._descriptions is None:
            return None
        published = published_unseen()
        if nameless := [label for label in published if label not in self.names]:
            raise UserError(
                f"{self.root}: the class descriptions lack {nameless[0]} and {len(nameless) - 1} others of the "
                "published unseen labels; use those of V4 or later, or count afresh (num_unseen=400)"
            )
        return published

    def positives(self, split: Split) -> dict[str, int]:
        """Number of a split's images in which a label is present, for every label of its annotations."""
        settings = {"names": self._hub_settings}
        inputs = self._layout.inputs(split)
        with cached_folder(self.cache_dir, "openimages-counts", inputs, settings) as (folder, aside):
            if aside is not None:
                _, annotations = self._layout.read(split)
                (aside / "positives.json").write_text(json.dumps(annotations.positives()))
        counts: dict[str, int] = json.loads((folder / "positives.json").read_text())
        return counts

    def read_annotations(self, split: Split) -> Table:
        """Rows of a split, in the order of its list of images and of its annotations."""
        label_ids = self.label_ids

        def make(counts: dict[str, int]) -> Iterable[pa.RecordBatch]:
            image_ids, annotations = self._layout.read(split, label_ids)
            positive, negative = annotations.lists(len(label_ids), counts)
            del annotations
            for start in range(0, len(image_ids), ROWS_AT_ONCE):
                ids, present, absent = (part.slice(start, ROWS_AT_ONCE) for part in (image_ids, positive, negative))
                yield record_batch(self._layout.paths(split, ids), present, absent, ids)

        settings = {"root": str(self.root.absolute()), "labels": label_ids, "names": self._hub_settings}
        inputs = self._layout.inputs(split)
        table = cached_table(self.cache_dir, f"openimages-{split}", inputs, settings, make)
        return self._layout.finish(split, table)

    def dataset(self, split: Split) -> datasets.Dataset | datasets.IterableDataset:  # type: ignore[override]
        """Rows of a split without missing images; a stream keeps all rows.

        Raises:
            UserError: More than `max_missing` of the images are missing, or the split is empty.
        """
        if not self.streaming:
            return super().dataset(split)
        if self.validation_size:
            raise UserError("data.validation_size needs the rows on disk; remove it or data.streaming")
        assert isinstance(self._layout, HubRows)
        return self._layout.stream(split, self.label_ids, self.path_check)

    def prepare_data(self) -> None:
        """Read annotations and look for images, once per machine; nothing is prepared for a stream."""
        if not self.streaming:
            super().prepare_data()

    @cached_property
    def _layout(self) -> OpenImagesFiles | HubRows:
        return HubRows(self.root, self._descriptions, self.streaming) if self.is_hub else OpenImagesFiles(self.root)

    @cached_property
    def _descriptions(self) -> dict[str, str] | None:
        path = self._class_file("class-descriptions.csv", self.class_descriptions)
        return read_descriptions(path) if path else None

    @property
    def _hub_settings(self) -> list[str] | None:
        """Names of the machine ids, which the meaning of a Hub set's labels depends on."""
        return sorted(map(str, (self._descriptions or {}).items())) if self.is_hub else None

    def _class_file(self, name: str, given: str | None) -> Path | None:
        path = Path(given).expanduser() if given else find_class_file(self.root, name)
        if path is None and not self.is_hub:
            raise UserError(f"{self.root}: no {name} there; download it from {SOURCE}")
        return path
