"""What images without labels a model was fitted on, and the threshold that they give."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ovml.utils.errors import UserError, check_at_most, check_not_negative, check_positive, error_at
from ovml.utils.schema import check_type
from ovml.vocabulary import LabelVocabulary


@dataclass(frozen=True)
class ScoreThreshold:
    """Minimum score of a present label, from the number of labels that an image is expected to have.

    Scores of a head that compares labels depend on the label set, so labels are scored together with those of
    `vocabulary`.

    Attributes:
        expected: Mean number of labels of an image.
        score: The score that so many labels reach.
        vocabulary: The labels that it was found with.

    Example:
        >>> import torch
        >>> scores, labels = torch.tensor([[4.0, 1.0], [3.0, 2.0]]), LabelVocabulary(("cat", "dog"))
        >>> ScoreThreshold.of(scores, 1.0, labels).score
        2.5
    """

    expected: float
    score: float
    vocabulary: LabelVocabulary

    @classmethod
    def of(cls, scores: Tensor, expected: float, vocabulary: LabelVocabulary) -> ScoreThreshold:
        """The threshold that leaves `expected` labels an image in `scores [N, L]`, on average."""
        ordered = scores.double().flatten().sort(descending=True).values
        number = min(max(1, round(expected * len(scores))), len(ordered))
        return cls(expected, float(ordered[number - 1 : number + 1].mean()), vocabulary)

    def together(self, vocabulary: LabelVocabulary) -> LabelVocabulary:
        """The labels of a vocabulary, then those of the threshold that it lacks."""
        return vocabulary.followed_by(self.vocabulary)


@dataclass(frozen=True)
class Adapted:
    """Images that a model was fitted on, without labels.

    Attributes:
        images: Number of images that were read.
        unreadable: Images that could not be read, and were left out.
        pool: Name of their folder, for the model card.
        threshold: `None` if no number of labels was expected.
    """

    images: int
    unreadable: int
    pool: str = ""
    threshold: ScoreThreshold | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Adapted:
        """The record of plain values.

        Raises:
            UserError: They are not what `to_dict` gives.
        """
        with error_at(f"{where}: not what ovml adapt wrote", "adapt the model again"):
            check_type(values, Adapted, "adapted")
            check_not_negative("adapted", images=values["images"], unreadable=values["unreadable"])
            threshold = None
            if found := values.get("threshold"):
                check_positive("threshold", expected=found["expected"])
                check_at_most("threshold", 10**30, score=abs(found["score"]))
                vocabulary = LabelVocabulary.from_any(found["vocabulary"])
                threshold = ScoreThreshold(float(found["expected"]), float(found["score"]), vocabulary)
        return cls(values["images"], values["unreadable"], values.get("pool", ""), threshold)

    def summary(self) -> str:
        """One line on the images.

        >>> Adapted(1200, 1, "photos").summary()
        '1,200 images of photos, without labels; 1 could not be read'
        """
        of = f" of {self.pool}" if self.pool else ""
        lost = f"; {self.unreadable:,} could not be read" if self.unreadable else ""
        return f"{self.images:,} images{of}, without labels{lost}"


def check_expected(expected: float, number: int) -> None:
    """Check the number of labels that an image is expected to have.

    Args:
        expected: The number.
        number: Number of labels.

    Raises:
        UserError: It is not above 0, or above the number of labels.
    """
    if not 0 < expected <= number:
        raise UserError(f"expected must be above 0 and at most {number:,}, the number of labels; got {expected:g}")
