"""What the page computes, without Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from ovml.cli.app.pictures import open_picture, stamp
from ovml.data.synthetic.scenes import LABELS as DEMO_LABELS
from ovml.heads.pool import fitted_part
from ovml.heads.scoring import SCORINGS
from ovml.inference.patches import LabelEvidence, PatchGrid, find_labels
from ovml.inference.tagger import LabelScore, Tagger
from ovml.model import OpenVocabularyModel
from ovml.utils.errors import UserError
from ovml.utils.resources import DEMO, VOCABULARIES
from ovml.vocabulary import LabelVocabulary, check_names, packaged_vocabulary

LONGEST = 200
"""Characters of a typed label."""
TAGS = 3
"""Labels of an image in the gallery."""


def typed_labels(text: str, most: int) -> LabelVocabulary:
    r"""Labels from text, one a line or separated by commas.

    Args:
        text: What was typed.
        most: Maximum number of labels.

    Raises:
        UserError: There is none, there are too many, one is too long, or one is repeated.

    >>> typed_labels("red circle, blue star\nmoon,", 10).names
    ('red circle', 'blue star', 'moon')
    """
    names = [name.strip() for line in text.splitlines() for name in line.split(",") if name.strip()]
    if not names:
        raise UserError("labels: none typed; type some, one a line or separated by commas")
    if len(names) > most:
        raise UserError(f"labels: {len(names):,} are too many; type at most {most:,}")
    if long := next((name for name in names if len(name) > LONGEST), None):
        raise UserError(f"labels: '{long[:30]}...' has {len(long):,} characters; a label may have {LONGEST}")
    return LabelVocabulary(check_names(names))


def vocabularies(
    model: OpenVocabularyModel, name: str, given: LabelVocabulary | None = None
) -> dict[str, LabelVocabulary]:
    """The label lists to choose from, by title; the first is the default.

    Args:
        model: Offers its vocabulary, and the seen and the unseen labels of it.
        name: The model's name; for `ovml-demo`, which has no vocabulary, the labels of its training are offered.
        given: Labels of the command line.
    """
    lists = {} if given is None else {f"given ({len(given):,})": given}
    own = model.vocabulary
    if own is not None:
        lists[f"the model's own ({len(own):,})"] = own
        if own.seen and own.unseen:
            lists[f"seen in training ({len(own.seen):,})"] = own.seen_only()
        if own.unseen:
            unseen = LabelVocabulary(own.unseen, (), own.texts[own.unseen_slice])
            lists[f"unseen in training ({len(unseen):,})"] = unseen
    elif name == DEMO:
        lists[f"drawn shapes ({len(DEMO_LABELS):,})"] = LabelVocabulary(DEMO_LABELS)
    return lists


def packaged_vocabularies() -> dict[str, LabelVocabulary]:
    """The vocabularies that ovml ships, by title.

    >>> list(packaged_vocabularies())[1:3]
    ['coco (80)', 'voc (20)']
    """
    packaged = {name: packaged_vocabulary(name) for name in VOCABULARIES}
    return {f"{name} ({len(labels):,})": labels for name, labels in packaged.items()}


@dataclass(frozen=True)
class Ranking:
    """An image's labels, best first.

    Attributes:
        image: Its file.
        vocabulary: The labels.
        scores: Of all labels.
        probabilities: Whether the scores are calibrated.
        scoring: Name of what a plain CLIP scored by; empty for its first.
    """

    image: str
    vocabulary: LabelVocabulary
    scores: Sequence[LabelScore]
    probabilities: bool = False
    scoring: str = ""


class Ranker:
    """Ranks labels for images and locates them; each label list is embedded once.

    Args:
        model: The classifier.
        prompt: Templates instead of the model's own prompt; see `Tagger`.
        scoring: Name of what a plain CLIP scores by.

    Attributes:
        scorings: Names to choose from, if the model is a plain CLIP: `scoring`, then others that need no fit.

    Example:
        >>> from ovml.model import OpenVocabularyModel
        >>> Ranker(OpenVocabularyModel("ovml-demo")).calibrated
        False
    """

    def __init__(
        self, model: OpenVocabularyModel, prompt: Sequence[str] | None = None, scoring: str = "cosine"
    ) -> None:
        self.model = model.eval()
        unfitted = [name for name, make in SCORINGS.items() if fitted_part(make().head) is None]
        self.scorings = [] if model.scoring is None else list(dict.fromkeys([scoring, *unfitted]))
        self.prompt = prompt
        self.calibrated = model.calibration is not None
        self._tagger = lru_cache(maxsize=8)(self._new_tagger)
        self._best = lru_cache(maxsize=1000)(lambda path, changed, *asked: tuple(self.rank(path, *asked).scores[:TAGS]))

    def _new_tagger(self, vocabulary: LabelVocabulary, probabilities: bool, scoring: str) -> Tagger:
        other = scoring in self.scorings[1:]  # a visitor may send any text
        model = self.model.scored_by(SCORINGS[scoring]()).eval() if other else self.model
        calibrates = probabilities and self.calibrated
        options: Any = {"top_k": None, "num_workers": 0, "prompt": self.prompt, "probabilities": calibrates}
        return Tagger(model, vocabulary, **options)

    def embed(self, vocabulary: LabelVocabulary, probabilities: bool = False, scoring: str = "") -> None:
        """Embed the labels of a vocabulary before images are ranked.

        Raises:
            UserError: A label is too long for the text tower.
        """
        self._tagger(vocabulary, probabilities, scoring).label_embeds()

    def rank(self, image: str, vocabulary: LabelVocabulary, probabilities: bool = False, scoring: str = "") -> Ranking:
        """Rank all labels of a vocabulary.

        Args:
            image: An image file.
            vocabulary: The labels.
            probabilities: Calibrate the scores, if the model can.
            scoring: One of `scorings`. Default: the first.

        Raises:
            UserError: The file is no image, is broken or is gone, or has too many pixels.
        """
        ((_, scores),) = self._tagger(vocabulary, probabilities, scoring).tag([open_picture(image)])
        return Ranking(image, vocabulary, scores, probabilities and self.calibrated, scoring)

    def best(
        self, image: str, vocabulary: LabelVocabulary, probabilities: bool = False, scoring: str = ""
    ) -> tuple[LabelScore, ...]:
        """The best `TAGS` labels of a vocabulary; kept for the last images. See `rank`."""
        return self._best(image, stamp(image), vocabulary, probabilities, scoring)

    def find(self, ranking: Ranking, label: str) -> tuple[Image.Image, PatchGrid, LabelEvidence]:
        """Find one of the ranked labels in the image.

        Returns:
            The image, the grid of its patches, and the label's evidence in them.

        Raises:
            UserError: The image is gone.
        """
        image = open_picture(ranking.image)
        grid, evidence = find_labels(self._tagger(ranking.vocabulary, False, ranking.scoring), image)
        return image, grid, next(found for found in evidence if found.label == label)
