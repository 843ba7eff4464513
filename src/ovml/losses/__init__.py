"""Losses turn logits and targets into a scalar. To add one, subclass `Loss`."""

from ovml.losses.base import Loss
from ovml.losses.binary import AsymmetricLoss, BinaryCrossEntropy, PerLabelLoss
from ovml.losses.contrastive import MultiMatchingLoss
from ovml.losses.margins import LearnedMarginRankingLoss, SpreadMarginRankingLoss
from ovml.losses.ranking import RankingLoss, ranking_loss
from ovml.losses.scaled import ScaledLoss
from ovml.losses.zlpr import ZLPRLoss

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "LearnedMarginRankingLoss",
    "Loss",
    "MultiMatchingLoss",
    "PerLabelLoss",
    "RankingLoss",
    "ScaledLoss",
    "SpreadMarginRankingLoss",
    "ZLPRLoss",
    "ranking_loss",
]
