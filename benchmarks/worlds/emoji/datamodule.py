"""The emoji world as a data module."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from datasets import Dataset

from ovml.data.base import MultiLabelDataModule, Split
from ovml.data.rows import Transform
from ovml.data.transforms import TrainTransform
from ovml.encoders.checkpoints import DEFAULT
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary
from worlds.emoji.names import emoji_names, emoji_vocabulary
from worlds.emoji.pictures import emoji_pictures
from worlds.emoji.scenes import EmojiWorld, emoji_scenes


class EmojiDataModule(MultiLabelDataModule):
    """Scenes of emoji, over a thousand names, drawn from a seed; test scenes in another style, if wanted.

    Names come from PyPI's `emoji` (`pip install emoji`), pictures from Noto Color Emoji or a folder. With the
    same names and seed, test scenes in two styles show the same objects in the same places: what their figures differ
    by is the shift of style.

    Args:
        font: A colour bitmap font, or a folder of PNG or WebP pictures named by code point (`1f600.png`). Default: Noto
            Color Emoji, where a system's package puts it.
        test_pictures: Font or folder of the test scenes. Default: that of the others.
        num_names: How many of the about 1,350 names to take. Default: all.
        train_size: Scenes to train on.
        eval_size: Scenes of the validation and of the test split.
        world_seed: Seed of the scenes.
        cache_dir: Where pictures and drawn scenes are kept. Default: that of `datasets`.
        clip: See `MultiLabelDataModule`.
        kwargs: See `MultiLabelDataModule`.

    Raises:
        UserError: A number is out of range; and when they are first needed: the names' package, the font or the
            folder is not there, or lacks over 5 % of the pictures.

    Example:
        >>> EmojiDataModule(num_names=400, test_pictures="fluent-emoji-3d/assets", clip="ovml-demo").sizes["test"]
        1000
    """

    def __init__(
        self,
        font: str | None = None,
        test_pictures: str | None = None,
        num_names: int | None = None,
        train_size: int = 20000,
        eval_size: int = 1000,
        world_seed: int = 0,
        cache_dir: str | None = None,
        clip: str = DEFAULT,
        **kwargs: Any,
    ) -> None:
        super().__init__(clip=clip, **kwargs)
        for name, size in (("train_size", train_size), ("eval_size", eval_size)):
            if size < 1:
                raise UserError(f"data.{name} must be at least 1; got {size}")
        self.font = font
        self.test_pictures = test_pictures
        self.num_names = num_names
        self.sizes = {"train": train_size, "validation": eval_size, "test": eval_size}
        self.world_seed = world_seed
        self.cache_dir = cache_dir

    @cached_property
    def names(self) -> dict[str, str]:
        """The emoji by name, in the vocabulary's order."""
        return emoji_names(self.num_names)

    @property
    def vocabulary(self) -> LabelVocabulary:
        """The names."""
        return emoji_vocabulary(tuple(self.names))

    @cached_property
    def train_transform(self) -> Transform:
        """Random crops that are not mirrored: the scenes are, where that leaves the names true."""
        if not self.augment:
            return self.eval_transform
        return TrainTransform(self.image_processor, scale=self.crop_scale, flip=0.0, rand_augment=self.rand_augment)

    def world(self, split: Split) -> EmojiWorld:
        """What draws the scenes of a split, in its style."""
        source = self.test_pictures if split == "test" and self.test_pictures else self.font
        pictures = emoji_pictures(source, tuple(self.names.values()), self.cache_dir)
        return EmojiWorld(tuple(self.names), pictures, self.world_seed)

    def dataset(self, split: Split) -> Dataset:
        """Scenes of a split, drawn once and then read from disk."""
        return emoji_scenes(self.world(split), split, self.sizes[split], self.cache_dir)
