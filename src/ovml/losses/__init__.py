"""Losses: logits and targets in, a scalar out. To add one, subclass `Loss` in a file here."""

from ovml.losses.base import Loss
from ovml.losses.ranking import RankingLoss, ranking_loss

__all__ = ["Loss", "RankingLoss", "ranking_loss"]
