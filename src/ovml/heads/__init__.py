"""Heads turn image features and label embeddings into logits. To add one, subclass `Head`."""

from ovml.heads.base import Head, TeacherFeatures
from ovml.heads.cosine import CosineHead
from ovml.heads.dualcoop import DualCoOpHead
from ovml.heads.gaussian import GaussianHead
from ovml.heads.global_ import GlobalHead
from ovml.heads.local import LocalHead
from ovml.heads.ml_decoder import MLDecoderHead
from ovml.heads.optimal_transport import OptimalTransportHead
from ovml.heads.patch_softmax import PatchSoftmaxHead
from ovml.heads.prompt_fusion import PromptFusionHead
from ovml.heads.qks import QKSHead
from ovml.heads.query import QueryHead
from ovml.heads.ram import RAMHead
from ovml.heads.spatial_softmax import SpatialSoftmaxHead
from ovml.heads.standardized import StandardizedHead
from ovml.heads.surgery import SurgeryHead
from ovml.heads.two_stream import TwoStreamHead

__all__ = [
    "CosineHead",
    "DualCoOpHead",
    "GaussianHead",
    "GlobalHead",
    "Head",
    "LocalHead",
    "MLDecoderHead",
    "OptimalTransportHead",
    "PatchSoftmaxHead",
    "PromptFusionHead",
    "QKSHead",
    "QueryHead",
    "RAMHead",
    "SpatialSoftmaxHead",
    "StandardizedHead",
    "SurgeryHead",
    "TeacherFeatures",
    "TwoStreamHead",
]
