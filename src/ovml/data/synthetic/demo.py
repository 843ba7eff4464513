"""The demo's synthetic data set as a data module."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.synthetic.scenes import SEEN_LABELS, UNSEEN_LABELS, scenes
from ovml.encoders.checkpoints import DEMO
from ovml.utils.errors import check_whole
from ovml.vocabulary import LabelVocabulary


class DemoDataModule(MultiLabelDataModule):
    """Scenes of coloured, patterned shapes, drawn with Pillow from a seed, without any download.

    Args:
        train_size: Number of training scenes.
        eval_size: Number of scenes of the validation and of the test split.
        scene_seed: Seed of the scenes.
        cache_dir: Cache folder of the drawn scenes. Default: the cache of `datasets`.
        clip: See `MultiLabelDataModule`.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: An argument is out of range.

    Example:
        >>> DemoDataModule().vocabulary.unseen[0] in UNSEEN_LABELS
        True
    """

    quick_rows = True

    def __init__(
        self,
        train_size: int = 3000,
        eval_size: int = 1000,
        scene_seed: int = 0,
        cache_dir: str | None = None,
        clip: str = DEMO,
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, **kwargs)
        check_whole(self, 1, train_size=train_size, eval_size=eval_size)
        check_whole(self, 0, scene_seed=scene_seed)
        self.sizes = {"train": train_size, "validation": eval_size, "test": eval_size}
        self.scene_seed = scene_seed
        self.cache_dir = cache_dir

    @property
    def vocabulary(self) -> LabelVocabulary:
        """The labels of the scenes."""
        return LabelVocabulary(SEEN_LABELS, UNSEEN_LABELS)

    def dataset(self, split: Split) -> Dataset:
        """Scenes of a split; drawn once, then read from disk."""
        return scenes(split, self.sizes[split], self.scene_seed, self.cache_dir)
