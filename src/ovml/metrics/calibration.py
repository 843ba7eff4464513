"""Calibration: from scores to probabilities, and the thresholds of labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ovml.utils.errors import UserError, check_at_most, check_not_negative, check_share, error_at
from ovml.utils.schema import check_type
from ovml.vocabulary import LabelVocabulary, label_key


@dataclass(frozen=True)
class Calibration:
    """Turns logits into probabilities: `p = sigmoid(slope * logit + offset)`.

    The scores of a head that normalises over labels depend on the label set. Labels are therefore scored together with
    those that the calibration was fitted with (`together`), so that a probability hardly depends on the other labels
    asked for.

    Attributes:
        slope: Slope of the curve; not negative.
        offset: Offset of the curve.
        threshold: Minimum probability of a present label: the one with the highest F1 over all labels.
        vocabulary: The labels that it was fitted with.
        label_thresholds: A threshold for each of those labels, where the calibrator has them per label.

    Example:
        >>> calibration = Calibration(2.0, -1.0, threshold=0.5, vocabulary=LabelVocabulary(("cat",)))
        >>> calibration.probabilities(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 0.9526])
    """

    slope: float
    offset: float
    threshold: float
    vocabulary: LabelVocabulary
    label_thresholds: tuple[float, ...] | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of logits, of the same shape."""
        return torch.sigmoid(self.slope * logits.float() + self.offset)

    def thresholds(self, vocabulary: LabelVocabulary) -> Tensor:
        """Minimum probability at which each label counts as present, `[L]`."""
        own = dict(zip(map(label_key, self.vocabulary.names), self.label_thresholds or (), strict=False))
        return torch.tensor([own.get(label_key(name), self.threshold) for name in vocabulary.names])

    def together(self, vocabulary: LabelVocabulary) -> LabelVocabulary:
        """The labels of a vocabulary, then those of the calibration that it lacks."""
        return vocabulary.followed_by(self.vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str = "calibration") -> Calibration:
        """The calibration of plain values.

        Raises:
            UserError: They are not what `to_dict` gives.
        """
        with error_at(f"{where}: not a calibration", "evaluate the model again, and save it"):
            check_type(values, Calibration, "calibration")
            vocabulary, own = LabelVocabulary.from_any(values["vocabulary"]), values.get("label_thresholds")
            if own is not None and len(own) != len(vocabulary):
                raise UserError(f"{len(own)} thresholds for {len(vocabulary)} labels")
            check_share("calibration", threshold=values["threshold"])
            check_share("calibration", **{f"label_thresholds, {i}": value for i, value in enumerate(own or ())})
            check_not_negative("calibration", slope=values["slope"])
            # They are used in float32.
            check_at_most("calibration", 10**30, slope=abs(values["slope"]), offset=abs(values["offset"]))
        numbers = {name: float(values[name]) for name in ("slope", "offset", "threshold")}
        return cls(**numbers, vocabulary=vocabulary, label_thresholds=None if own is None else tuple(map(float, own)))
