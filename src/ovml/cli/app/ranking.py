"""What the page computes; nothing of Gradio is known here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ovml.data.synthetic.scenes import LABELS as DEMO_LABELS
from ovml.encoders.checkpoints import DEMO
from ovml.inference.patches import LabelEvidence, PatchGrid, find_evidence
from ovml.inference.tagger import LabelScore, Tagger
from ovml.utils.errors import UserError
from ovml.utils.images import load_image
from ovml.vocabulary import LabelVocabulary, check_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovml.classifier import OVMultiLabelClassifier

LONGEST = 200
"""Characters of a typed label."""


def typed_labels(text: str, most: int) -> LabelVocabulary:
    r"""Labels from text, one a line or separated by commas.

    Args:
        text: As it was typed.
        most: Labels that are ranked at once.

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
    long = next((name for name in names if len(name) > LONGEST), None)
    if long is not None:
        raise UserError(f"labels: '{long[:30]}...' has {len(long):,} characters; a label may have {LONGEST}")
    return LabelVocabulary(check_names(names))


def vocabularies(
    model: OVMultiLabelClassifier, name: str, given: LabelVocabulary | None = None
) -> dict[str, LabelVocabulary]:
    """The label lists to pick from, by title; the first is the one to begin with.

    Args:
        model: Its own vocabulary is offered whole, the seen and the unseen labels alone.
        name: The model's name: `ovml-demo`, which has no vocabulary, is offered that of its world.
        given: Labels that the page was started with.
    """
    lists = {} if given is None else {f"given ({len(given):,})": given}
    own = model.vocabulary
    if own is None:
        return (
            lists if name != DEMO else {**lists, f"drawn shapes ({len(DEMO_LABELS):,})": LabelVocabulary(DEMO_LABELS)}
        )
    lists[f"the model's own ({len(own):,})"] = own
    if own.unseen:
        unseen = LabelVocabulary(own.unseen, (), own.texts[own.unseen_slice])
        if own.seen:
            lists[f"seen in training ({len(own.seen):,})"] = own.seen_only()
        lists[f"unseen in training ({len(unseen):,})"] = unseen
    return lists


@dataclass(frozen=True)
class Ranking:
    """A picture's labels, best first.

    Attributes:
        picture: Its file.
        vocabulary: What was ranked.
        scores: All of it.
        probabilities: Whether the scores are calibrated.
    """

    picture: str
    vocabulary: LabelVocabulary
    scores: Sequence[LabelScore]
    probabilities: bool = False


class Ranker:
    """Ranks labels for pictures, and finds them in the picture; a label list is embedded once.

    Args:
        model: The classifier.
        prompt: Templates in the place of the model's own prompt; see `Tagger`.

    Example:
        >>> from ovml import OVMultiLabelClassifier
        >>> Ranker(OVMultiLabelClassifier("ovml-demo")).calibrated
        False
    """

    def __init__(self, model: OVMultiLabelClassifier, prompt: Sequence[str] | None = None) -> None:
        self.model = model.eval()
        self.prompt = prompt
        self.calibrated = getattr(model, "calibration", None) is not None
        self._tagger = lru_cache(maxsize=8)(self._new_tagger)

    def _new_tagger(self, vocabulary: LabelVocabulary, probabilities: bool) -> Tagger:
        more = {"probabilities": True} if probabilities else {}
        return Tagger(self.model, vocabulary, top_k=None, num_workers=0, prompt=self.prompt, **more)

    def rank(self, picture: str, vocabulary: LabelVocabulary, probabilities: bool = False) -> Ranking:
        """Rank all labels of a vocabulary.

        Args:
            picture: An image file.
            vocabulary: The labels.
            probabilities: Calibrate the scores, where the model can.

        Raises:
            UserError: The file is no image or is broken.
        """
        probabilities = probabilities and self.calibrated
        (tagged,) = self._tagger(vocabulary, probabilities).tag([open_picture(picture)])
        return Ranking(picture, vocabulary, tagged[1], probabilities)

    def find(self, ranking: Ranking, label: str) -> tuple[Image.Image, PatchGrid, LabelEvidence]:
        """Find one of the ranked labels in the picture.

        Returns:
            The picture, where its patches lie, and what they say of the label.

        Raises:
            UserError: The picture is gone.
        """
        picture = open_picture(ranking.picture)
        tagger = self._tagger(ranking.vocabulary, False)
        with torch.inference_mode():
            features = self.model.image_encoder(tagger.transform(picture)[None].to(self.model.device))
        evidence = find_evidence(features, tagger.label_embeds(), tagger.labels, self.model.head)
        patch_size = int(self.model.image_encoder.vision_model.config.patch_size)
        grid = PatchGrid.of(picture.size, tagger.transform, patch_size)
        return picture, grid, next(found for found in evidence if found.label == label)


def open_picture(path: str) -> Image.Image:
    """Read an uploaded picture.

    Raises:
        UserError: It is no image, is broken, or is gone.
    """
    name = Path(path).name
    try:
        return load_image(path, name)
    except UserError:
        raise
    except Exception as error:  # a malformed picture may lead Pillow to any of them
        raise UserError(f"{name}: broken image ({type(error).__name__}); replace the file") from error
