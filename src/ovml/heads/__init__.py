"""Heads: image features and label embeddings in, logits out. To add one, subclass `Head` in a file here."""

from ovml.heads.base import Head
from ovml.heads.cosine import CosineHead
from ovml.heads.global_ import GlobalHead
from ovml.heads.local import LocalHead
from ovml.heads.two_stream import TwoStreamHead

__all__ = ["CosineHead", "GlobalHead", "Head", "LocalHead", "TwoStreamHead"]
