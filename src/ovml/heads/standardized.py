"""Scores on one scale: standardised over the labels of an image, and over the images of a label."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head
from ovml.heads.cosine import CosineHead
from ovml.heads.pool import EmbedTexts, PoolFitted
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary


class StandardizedHead(PoolFitted, Head):
    """Scores of another head, standardised over the labels of each image; perhaps over the images of each label too.

    Rows: `(s - mean) / deviation` over the labels that are scored together, with the sample deviation. The order of an
    image's labels stays, so F1 at k stays; the order of a label's images changes, so mAP moves. SPARC's published code
    does so with cosines, and prints gains of mAP with large CLIPs.

    Columns: mean and deviation of each label over a pool of images without labels, which the head is fitted on. The
    order of a label's images stays.

    Args:
        head: Default: `CosineHead`.
        columns: Whether to standardise the columns after the rows.

    Raises:
        UserError: The other head has background names, takes pairs or a teacher, or is fitted itself. In `forward`: one
            label is scored alone; or the columns are not fitted for a label.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> StandardizedHead()(features, torch.randn(5, 8)).mean(dim=1).abs().max() < 1e-6
        tensor(True)
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, head: Head | None = None, columns: bool = False) -> None:
        super().__init__()
        self.head = head if head is not None else CosineHead()
        if self.head.background:
            raise UserError("StandardizedHead: head has background names, which would count as labels; leave them out")
        if self.head.takes_pairs or self.head.uses_teacher or isinstance(self.head, PoolFitted):
            raise UserError(f"StandardizedHead: head: a {type(self.head).__name__} does not fit inside; take another")
        self.columns = columns
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("deviation", torch.empty(0))
        self._rows: list[Tensor] = []

    @property
    def needs_pool(self) -> bool:
        """Whether its columns have to be fitted."""
        return self.columns

    def bind(self, embed_dim: int) -> Head:
        """Bind the other head."""
        self.head = self.head.bind(embed_dim)
        return self

    def set_logit_scale(self, scale: float) -> None:
        """Give it to the other head."""
        self.head.set_logit_scale(scale)

    def begin(self, vocabulary: LabelVocabulary, label_embeds: Tensor, embed: EmbedTexts) -> None:
        """Start to fit the columns."""
        super().begin(vocabulary, label_embeds, embed)
        self._rows = []

    @torch.no_grad()
    def observe(self, features: ImageFeatures) -> None:
        """Keep the rows of a batch."""
        self._rows.append(standardized(self.head(features, self.label_embeds)))

    @torch.no_grad()
    def finish(self) -> None:
        """Mean and deviation of each column.

        Raises:
            UserError: There are fewer than two images.
        """
        rows = torch.cat([self.label_embeds.new_empty(0, len(self.label_embeds)), *self._rows])
        if len(rows) < 2:
            raise UserError(f"StandardizedHead: {len(rows)} images are too few; give two or more")
        self.mean, self.deviation = (values.squeeze(0) for values in mean_and_deviation(rows, dim=0))
        self._rows = []

    def fitted_shapes(self, num_labels: int, width: int) -> dict[str, tuple[int, ...]]:
        """Mean and deviation of each label."""
        return dict.fromkeys(("mean", "deviation"), (num_labels,))

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Standardised scores `[B, L]`."""
        if not self.columns:
            return standardized(self.head(features, label_embeds))
        own = self.places(label_embeds)
        rows = standardized(self.head(features, self.label_embeds.float()))[:, own]  # over all labels, as in the fit
        return (rows - self.mean[own].float()) / self.deviation[own].float()


def standardized(scores: Tensor, of: Tensor | None = None) -> Tensor:
    """Standardise the rows of `[B, L]`; a row of equal scores becomes zeros.

    Args:
        scores: The scores.
        of: Scores `[B, L']` whose mean and deviation are taken. Default: those of `scores`.

    Raises:
        UserError: There is only one label.

    >>> standardized(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).tolist()
    [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    of = scores if of is None else of
    if of.shape[-1] < 2:
        raise UserError("labels: standardised scores compare labels; give two or more")
    mean, deviation = mean_and_deviation(of, dim=-1)
    return (scores - mean) / deviation


def mean_and_deviation(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and sample deviation of scores, with the dimension kept; the deviation of equal scores counts as 1."""
    deviation = scores.std(dim=dim, keepdim=True)
    return scores.mean(dim=dim, keepdim=True), deviation.masked_fill(deviation == 0, 1)
