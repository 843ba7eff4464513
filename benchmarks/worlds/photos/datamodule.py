"""Photographs with labels from their captions as a data module."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from datasets import Dataset

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.cache import LABEL_FEATURES
from ovml.data.hub.load import LoadedSet
from ovml.data.hub.rows import beside_images
from ovml.vocabulary import LabelVocabulary
from worlds.photos.labels import LabelList, label_list
from worlds.photos.photographs import SHARED, captions_of, image_column, load_photographs


class CaptionDataModule(MultiLabelDataModule):
    """Photographs whose labels are those of `labels.yaml` that at least two of their captions name.

    Rows of the training split never have a withheld label. A label that fewer captions name counts as absent, although
    a photograph may show it: see docs/photographs.md for how often.

    Args:
        path: Folder of `train.parquet`, `validation.parquet` and `test.parquet` with an image and its captions, or a
            name on the Hub, such as `jxie/flickr8k`.
        cache_dir: Cache folder. Default: that of `datasets`.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: When first read: it cannot be loaded, or lacks a split, images or captions.
    """

    def __init__(self, path: str = SHARED, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.cache_dir = cache_dir
        self._rows: dict[Split, Dataset] = {}

    @property
    def labels(self) -> LabelList:
        """The list of labels."""
        return label_list()

    @property
    def vocabulary(self) -> LabelVocabulary:
        """Seen labels, then the withheld ones."""
        return self.labels.vocabulary

    @cached_property
    def source(self) -> LoadedSet:
        """The photographs as they are."""
        return load_photographs(self.path, self.cache_dir)

    def captions(self, split: Split) -> list[list[str]]:
        """The captions of each photograph of a split."""
        rows: Any = self.source.splits[split]
        return captions_of(rows, self.path)

    def dataset(self, split: Split) -> Dataset:
        """Rows of one split, made once."""
        if split not in self._rows:
            rows: Any = self.source.splits[split]
            names = self.vocabulary.seen if split == "train" else self.vocabulary.names
            column = {name: i for i, name in enumerate(names)}
            labels = [self.labels.labels_of(captions) for captions in self.captions(split)]
            ids = map(str, rows["image_id"][:] if "image_id" in rows.features else range(len(rows)))
            made = [
                {"positive": sorted(column[name] for name in own if name in column), "negative": [], "image_id": id}
                for own, id in zip(labels, ids, strict=True)
            ]
            images = image_column(rows, self.path)
            self._rows[split] = beside_images(rows, images, Dataset.from_list(made, features=LABEL_FEATURES))
        return self._rows[split]
