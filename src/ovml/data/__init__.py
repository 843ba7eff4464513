"""Data modules. To add a data set, subclass `FolderDataModule` or `MultiLabelDataModule` and write one YAML."""

from ovml.data.base import MultiLabelDataModule
from ovml.data.demo import DemoDataModule
from ovml.data.emoji import EmojiDataModule
from ovml.data.folder import FolderDataModule
from ovml.data.hub import HubDataModule
from ovml.data.json_ import JSONDataModule
from ovml.data.nuswide import NUSWIDEDataModule
from ovml.data.openimages import OpenImagesDataModule
from ovml.data.rand_augment import RandAugment

__all__ = [
    "DemoDataModule",
    "EmojiDataModule",
    "FolderDataModule",
    "HubDataModule",
    "JSONDataModule",
    "MultiLabelDataModule",
    "NUSWIDEDataModule",
    "OpenImagesDataModule",
    "RandAugment",
]
