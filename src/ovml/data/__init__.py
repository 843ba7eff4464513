"""Data modules. To add a data set, subclass `FolderDataModule` or `MultiLabelDataModule`."""

from ovml.data.base import MultiLabelDataModule
from ovml.data.divided.base import DividedDataModule
from ovml.data.divided.coco import COCODataModule
from ovml.data.divided.pedestrians import PA100KDataModule, RAPDataModule
from ovml.data.divided.scenes import MLRSNetDataModule, MultiSceneDataModule
from ovml.data.divided.voc import VOCDataModule
from ovml.data.folder import FolderDataModule
from ovml.data.hub.datamodule import HubDataModule
from ovml.data.json.datamodule import JSONDataModule
from ovml.data.nuswide.datamodule import NUSWIDEDataModule
from ovml.data.openimages.datamodule import OpenImagesDataModule
from ovml.data.own.datamodule import OwnDataModule
from ovml.data.ram_augmentation import Augmentation, RAMAugmentation
from ovml.data.rand_augment import RandAugment
from ovml.data.synthetic.demo import DemoDataModule

__all__ = [
    "Augmentation",
    "COCODataModule",
    "DemoDataModule",
    "DividedDataModule",
    "FolderDataModule",
    "HubDataModule",
    "JSONDataModule",
    "MLRSNetDataModule",
    "MultiLabelDataModule",
    "MultiSceneDataModule",
    "NUSWIDEDataModule",
    "OpenImagesDataModule",
    "OwnDataModule",
    "PA100KDataModule",
    "RAMAugmentation",
    "RAPDataModule",
    "RandAugment",
    "VOCDataModule",
]
