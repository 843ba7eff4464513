"""The base class of all heads."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ovml.encoders import ImageFeatures


class Head(nn.Module, ABC):
    """Scores images against labels. A head never owns labels, so any vocabulary can be scored.

    Subclass it, write `forward`, and name the class on the command line: `--model.head my_pkg.MyHead`.
    Parameters of a head learn in the vision stage, or in `HeadStage`, which leaves the towers as they are.

    Example:
        >>> class MaxPatchHead(Head):
        ...     def forward(self, features, label_embeds):
        ...         return (features.patch_embeds @ label_embeds.T).amax(dim=1)
    """

    def bind(self, embed_dim: int) -> Head:
        """Make what needs the embeddings' width; returns the head itself.

        A classifier calls it with the width of its towers. Most heads need nothing. One that does makes its parameters
        here, and does nothing where it has that width already.

        Args:
            embed_dim: The width D of global, patch and label embeddings.
        """
        return self

    uses_teacher: bool = False
    """Whether `training_logits` reads the features of the original CLIP."""

    def training_logits(
        self, features: ImageFeatures, label_embeds: Tensor, targets: Tensor, teacher: ImageFeatures | None
    ) -> tuple[Tensor, ...]:
        """Logits `[B, L]` whose losses are summed in training. Default: those of `forward`.

        Args:
            features: See `forward`.
            label_embeds: See `forward`.
            targets: `[B, L]`: 1 present, 0 absent, -1 unknown.
            teacher: Features of the original CLIP; `None` in stages that do not distil.
        """
        return (self(features, label_embeds),)

    @abstractmethod
    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Score every image against every label.

        Args:
            features: Global embeddings `[B, D]` and patch embeddings `[B, P, D]`, not L2-normalised.
            label_embeds: Label embeddings `[L, D]`, not L2-normalised.

        Returns:
            Logits `[B, L]`; a greater one means that the label is more likely present.
        """


def normalize_over_labels(scores: Tensor) -> Tensor:
    """Divide each row of `[B, L]` by its L2 norm over the labels; a row of zeros stays zero.

    >>> import torch
    >>> normalize_over_labels(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norm: Tensor = scores.norm(dim=-1, keepdim=True)
    return scores / norm.masked_fill(norm == 0, 1)
