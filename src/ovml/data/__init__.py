"""Data modules. To add a data set, subclass `MultiLabelDataModule` in a file here and write one YAML."""

from ovml.data.base import MultiLabelDataModule
from ovml.data.demo import DemoDataModule
from ovml.data.folder import FolderDataModule
from ovml.data.rand_augment import RandAugment

__all__ = ["DemoDataModule", "FolderDataModule", "MultiLabelDataModule", "RandAugment"]
