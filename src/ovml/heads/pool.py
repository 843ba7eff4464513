"""What heads that are fitted on images without labels have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, check_several
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

EmbedTexts = Callable[[Sequence[str]], Tensor]
"""Embeds texts as they are, `[N, D]`."""
SAME = 5e-2
"""Largest distance between length-one embeddings of one label, in any precision: bfloat16 moves them by up to 0.02."""


class PoolFitted(nn.Module, ABC):
    """A head that is fitted once on a pool of images, without their labels, for a set of labels.

    `begin` once, `observe` for each batch, `finish` once; what was fitted are buffers, which are saved with the model.

    Attributes:
        label_embeds: Length-one embeddings `[L, D]` of the labels that it was fitted for; empty before.
    """

    label_embeds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("label_embeds", torch.empty(0, 0))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take buffers of the sizes that they were fitted to."""
        for name, buffer in self.named_buffers(recurse=False):
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, buffer.new_empty(saved.shape, dtype=saved.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)
        errors: list[str] = args[-1]
        if self.label_embeds.dim() != 2:
            errors.append(f"{prefix}label_embeds has {self.label_embeds.dim()} dimensions")
        elif len(self.label_embeds):
            for name, shape in self.fitted_shapes(*self.label_embeds.shape).items():
                if (found := tuple(getattr(self, name).shape)) != shape:
                    errors.append(f"{prefix}{name} is of shape {list(found)} where {list(shape)} is expected")

    def fitted_shapes(self, num_labels: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what was fitted, by the names of the buffers."""
        return {}

    def begin(self, vocabulary: LabelVocabulary, label_embeds: Tensor, embed: EmbedTexts) -> None:
        """Start to fit.

        Args:
            vocabulary: The labels.
            label_embeds: Their embeddings `[L, D]`.
            embed: Embeds other texts.

        Raises:
            UserError: Labels have several texts each, `[L, K, D]`, or there is only one label.
        """
        if label_embeds.dim() != 2:
            raise UserError(
                f"{type(self).__name__}: is fitted for one text of each label; take a prompt with pool='mean'"
            )
        check_several(label_embeds)
        self.label_embeds = F.normalize(label_embeds.detach().float(), dim=-1)

    @property
    def needs_pool(self) -> bool:
        """Whether it has to be fitted before it scores."""
        return True

    @property
    def not_found(self) -> Sequence[int]:
        """Labels that nothing was fitted for, since no image of the pool shows them."""
        return ()

    @abstractmethod
    def observe(self, features: ImageFeatures) -> None:
        """Take in a batch of images."""

    @abstractmethod
    def finish(self) -> None:
        """End the fit.

        Raises:
            UserError: The pool is too small.
        """

    def places(self, label_embeds: Tensor) -> Tensor:
        """Which of the fitted labels each of these `[L', D]` is, `[L']`.

        Raises:
            UserError: The head was never fitted, or not for one of them.
        """
        name = type(self).__name__
        if not len(self.label_embeds):
            raise UserError(f"{name}: not fitted yet; run 'ovml adapt' on a folder of images without labels first")
        if label_embeds.shape[-1] != self.label_embeds.shape[-1]:
            raise UserError(
                f"{name}: was fitted for embeddings of {self.label_embeds.shape[-1]} numbers, the model has "
                f"{label_embeds.shape[-1]}; fit it again"
            )
        asked, fitted = F.normalize(label_embeds.float(), dim=-1), self.label_embeds.float()
        best = (asked @ fitted.T).argmax(dim=-1)
        # Not by the product, which may be rounded as much as half precision.
        if unknown := int(((asked - fitted[best]).norm(dim=-1) > SAME).sum()):
            raise UserError(
                f"{name}: {unknown:,} of {len(label_embeds):,} labels are not among those that it was fitted for; fit "
                "it again with all labels, or score fewer"
            )
        return best


def fitted_part(head: Head) -> PoolFitted | None:
    """The head, if it is fitted on images without labels."""
    return head if isinstance(head, PoolFitted) and head.needs_pool else None
