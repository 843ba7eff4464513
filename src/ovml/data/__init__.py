"""Data modules. To add a data set, subclass `FolderDataModule` or `MultiLabelDataModule`."""

from ovml.data.base import MultiLabelDataModule
from ovml.data.folder import FolderDataModule
from ovml.data.hub.datamodule import HubDataModule
from ovml.data.json.datamodule import JSONDataModule
from ovml.data.nuswide.datamodule import NUSWIDEDataModule
from ovml.data.openimages.datamodule import OpenImagesDataModule
from ovml.data.own.datamodule import OwnDataModule
from ovml.data.rand_augment import RandAugment
from ovml.data.synthetic.demo import DemoDataModule

__all__ = [
    "DemoDataModule",
    "FolderDataModule",
    "HubDataModule",
    "JSONDataModule",
    "MultiLabelDataModule",
    "NUSWIDEDataModule",
    "OpenImagesDataModule",
    "OwnDataModule",
    "RandAugment",
]
