"""Named scorings: a head and a source of patches, for a plain CLIP that nobody trained for several labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ovml.encoders.sources import SCLIP, CLIPSurgery, MaskCLIP, PatchSource
from ovml.heads.base import Head
from ovml.heads.cosine import CosineHead
from ovml.heads.gaussian import GaussianHead
from ovml.heads.patch_softmax import PatchSoftmaxHead
from ovml.heads.prompt_fusion import PromptFusionHead
from ovml.heads.standardized import StandardizedHead
from ovml.heads.surgery import SurgeryHead
from ovml.utils.errors import UserError
from ovml.utils.parts import build


class Scoring(NamedTuple):
    """How a plain CLIP scores labels.

    Attributes:
        head: Scores the labels. A `PoolFitted` one is fitted first, by `ovml adapt`.
        cost: What it needs for an image, in a few words.
        patch_source: Makes the patches of a CLIP's tower. Default: the output of its last block. A SigLIP's tower has
            no class token and keeps its own patches, which are MaskCLIP's.
        second_pass: A `Tagger` looks again at the labels that stand out, by `ovml.inference.second_pass.SecondPass`.
            The model itself does not, and such a scoring is neither saved nor exported.

    Example:
        >>> Scoring(PatchSoftmaxHead(background=["sky"]), "one pass", SCLIP()).patch_source
        SCLIP()
    """

    head: Head
    cost: str
    patch_source: PatchSource | None = None
    second_pass: bool = False


def cosine() -> Scoring:
    """Cosine of the whole image, as in zero-shot CLIP."""
    return Scoring(CosineHead(), "one pass an image")


def standardized() -> Scoring:
    """The same cosines, standardised over the labels of an image: comparable between images."""
    return Scoring(StandardizedHead(), "one pass an image")


def surgery() -> Scoring:
    """Cosines less what all labels have in common, with CLIP Surgery's patches for heat maps."""
    return Scoring(SurgeryHead(), "one pass an image, and attention of six blocks again", CLIPSurgery())


def patches(background: Sequence[str] = ()) -> Scoring:
    """The best patch of each label, where labels compete for patches.

    Args:
        background: Names that are no labels and take patches too; see `PatchSoftmaxHead`.
    """
    head = PatchSoftmaxHead(scale=None, background=background)
    return Scoring(head, "one pass an image, and a part of a block", MaskCLIP())


def tagclip() -> Scoring:
    """TagCLIP: the best patch of each label after refinement, and a second look at the regions of the best labels."""
    cost = "one pass an image, and one for each label that stands out in it"
    return patches()._replace(cost=cost, second_pass=True)


def sparc(prompts: Sequence[str] = ()) -> Scoring:
    """Cosines standardised over the labels of an image, then over the images of a pool, as in SPARC.

    Args:
        prompts: Compound prompts, such as "a dog next to a bicycle", whose scores are fused; see `PromptFusionHead`.
    """
    head = PromptFusionHead(prompts) if prompts else StandardizedHead(columns=True)
    return Scoring(head, "one pass an image; fitted on images without labels")


def piaa() -> Scoring:
    """A Gaussian for each label in the patches, as in PIAA."""
    return Scoring(GaussianHead(), "one pass an image, and a block again; fitted on images without labels", SCLIP())


SCORINGS: dict[str, Callable[[], Scoring]] = {
    make.__name__: make for make in (cosine, standardized, surgery, patches, tagclip, piaa, sparc)
}
"""What may be given by its name; the first is the default of a plain CLIP."""


def scoring_of(scoring: str | Scoring) -> Scoring:
    """The scoring of a name, or of the import path of a head of one's own.

    Raises:
        UserError: There is none.

    >>> type(scoring_of("standardized").head).__name__, type(scoring_of("ovml.heads.LocalHead").head).__name__
    ('StandardizedHead', 'LocalHead')
    """
    if isinstance(scoring, Scoring):
        return scoring
    if scoring in SCORINGS:
        return SCORINGS[scoring]()
    if "." not in scoring:
        raise UserError(
            f"scoring {scoring!r}: unknown; it is one of {', '.join(SCORINGS)}, or the import path of a head of your "
            "own, such as my_package.MyHead"
        )
    return Scoring(build({"class_path": scoring, "init_args": {}}, Head, "scoring"), "a head of your own")
