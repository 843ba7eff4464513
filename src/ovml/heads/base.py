"""The base class of all heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ovml.encoders import ImageFeatures
from ovml.utils.errors import UserError
from ovml.utils.parts import Part


class TeacherFeatures(NamedTuple):
    """What the original CLIP makes of the images and the labels of a training step; nothing is L2-normalised.

    Attributes:
        global_embeds: `[B, D]`.
        patch_embeds: `[B, P, D]`.
        label_embeds: `[L, D]`, of the prompt's `original`.

    Example:
        >>> TeacherFeatures(torch.randn(2, 8), torch.randn(2, 4, 8), torch.randn(5, 8)).label_embeds.shape
        torch.Size([5, 8])
    """

    global_embeds: Tensor
    patch_embeds: Tensor
    label_embeds: Tensor


class Head(Part, nn.Module, ABC):
    """Base class of heads, which score images against labels. A head stores no labels, so it scores any vocabulary.

    To add a head, subclass it, implement `forward`, and pass the class on the command line:
    `--model.head my_pkg.MyHead`. Parameters of a head are trained in the vision stage, or in
    `ovml.training.HeadStage`, which keeps the towers frozen.

    Example:
        >>> class MaxPatchHead(Head):
        ...     def forward(self, features, label_embeds):
        ...         return (features.patch_embeds @ label_embeds.T).amax(dim=1)
    """

    def bind(self, embed_dim: int) -> Head:
        """Create parameters whose shape depends on the embedding width; returns the head itself.

        The model calls it with the width of its towers. The default does nothing. A head that overrides it must leave
        existing parameters of the right width unchanged.

        Args:
            embed_dim: Width D of global, patch and label embeddings.
        """
        return self

    def set_logit_scale(self, scale: float) -> None:
        """Take the factor that the model's CLIP learned for its cosines; the model calls it. Default: nothing."""

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the head scores: its parameters', which are float32 unless it is converted; or float32."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    takes_pairs: bool = False
    """Whether label embeddings are pairs `[L, 2, D]`, of an absent and a present label, as of `DualCoOpPrompt`."""

    background: Sequence[str] = ()
    """Names that are scored beside the labels: the head gets their embeddings behind the labels', and its scores of
    them are left out."""

    uses_teacher: bool = False
    """Whether `training_logits` uses the features of the original CLIP."""

    def training_logits(
        self, features: ImageFeatures, label_embeds: Tensor, targets: Tensor, teacher: TeacherFeatures | None
    ) -> tuple[Tensor, ...]:
        """Return logits for training; their losses are summed. Default: the logits of `forward`.

        Args:
            features: See `forward`.
            label_embeds: See `forward`.
            targets: `[B, L]`: 1 present, 0 absent, -1 unknown.
            teacher: Those of the original CLIP; `None` in stages without distillation.

        Returns:
            One or more tensors `[B, L]`.
        """
        return (self(features, label_embeds),)

    def label_scores(self, features: ImageFeatures, label_embeds: Tensor) -> tuple[Tensor, ...]:
        """Scores `[B, L]` of which none depends on another label; `combine` makes logits of them.

        A head that compares labels only at its end may divide its `forward` into these two, so that an evaluation by
        several label sets computes the scores of each label once.
        """
        raise NotImplementedError

    def combine(self, *scores: Tensor) -> Tensor:
        """Logits `[B, L]` of what `label_scores` returned, or of the same columns of each."""
        raise NotImplementedError

    @property
    def is_divided(self) -> bool:
        """Whether `label_scores` and `combine` do what `forward` does: they are of one class."""
        owners = [next(c for c in type(self).__mro__ if name in vars(c)) for name in ("forward", "label_scores")]
        return owners[0] is owners[1] and owners[1] is not Head

    @abstractmethod
    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Score every image against every label.

        Args:
            features: Global embeddings `[B, D]` and patch embeddings `[B, P, D]`, not L2-normalised.
            label_embeds: Label embeddings `[L, D]`, or pairs `[L, 2, D]` if `takes_pairs`; not L2-normalised.

        Returns:
            Logits `[B, L]`; a higher logit means that the label is more likely present.
        """


def has_weights(head: Head, width: int | None, embed_dim: int) -> bool:
    """Whether a head was bound already, for `Head.bind`.

    Args:
        head: The head.
        width: Embedding width of its weights; `None` if it has none.
        embed_dim: Embedding width that is asked for.

    Raises:
        UserError: It has another width.
    """
    if width is not None and width != embed_dim:
        raise UserError(f"{type(head).__name__}: has width {width} and cannot take {embed_dim}; make a new one")
    return width is not None


def check_several(label_embeds: Tensor) -> None:
    """Check that labels `[L, D]` can be compared with one another, for heads that score one alone the same everywhere.

    Raises:
        UserError: There is only one.
    """
    if label_embeds.shape[0] < 2:
        raise UserError("labels: this head compares labels with one another; give two or more")


def not_bound(head: Head) -> UserError:
    """The error of a head that is asked for scores before `Head.bind`."""
    name = type(head).__name__
    return UserError(f"{name}: has no weights yet; call head.bind(embed_dim) first (a model does it itself)")


def normalize_over_labels(scores: Tensor) -> Tensor:
    """Divide each row of `[B, L]` by its L2 norm over the labels; a row of zeros stays zero.

    >>> import torch
    >>> normalize_over_labels(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norm: Tensor = scores.norm(dim=-1, keepdim=True)
    return scores / norm.masked_fill(norm == 0, 1)
