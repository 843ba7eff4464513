"""DualCoOp's prompt tuning: one trained context for present labels and one for absent labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import TextEncoder
from ovml.prompts.base import PromptLearner
from ovml.prompts.coop import NamesInContext, check_context, num_leading, start_contexts
from ovml.utils.errors import UserError


class DualCoOpPrompt(PromptLearner):
    """A present and an absent embedding of each label (DualCoOp; Sun et al., NeurIPS 2022, arXiv 2206.09541).

    The text tower reads each name twice, as `[V+]_1 ... [V+]_M [NAME] .` and `[V-]_1 ... [V-]_M [NAME] .`. All labels
    share both contexts; `_` in names and words is read as a space. The embeddings are pairs, for `DualCoOpHead`.

    Args:
        num_context: Number of vectors `M` in each context; 16 by default, 64 in the published zero-shot trainings.
            `None`: each context's number of tokens in its words.
        present: Words that initialise the last vectors of the present context; `None` for random vectors. See
            `CoOpPrompt`.
        absent: The same for the absent context.

    Raises:
        UserError: An argument is invalid (see `CoOpPrompt`), or both contexts start with the same words.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> encoder = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> prompt = DualCoOpPrompt().bind(encoder)
        >>> list(prompt(["red circle", "star", "moon"]).shape) == [3, 2, encoder.embed_dim]
        True
    """

    embeds_apart = True

    gives_pairs = True
    present_context: nn.Parameter
    absent_context: nn.Parameter

    def __init__(self, num_context: int | None = 16, present: str | None = None, absent: str | None = None) -> None:
        super().__init__()
        check_context(num_context, (present, absent))
        if present is not None and present == absent:
            raise UserError(f"present and absent both start as {present!r}: give them different words, or None")
        self.num_context = num_context
        self.present = present
        self.absent = absent

    def bind(self, text_encoder: TextEncoder) -> PromptLearner:
        """Attach a text tower and create the vectors `present_context` and `absent_context`, `[M, W]` each."""
        super().bind(text_encoder)
        present, absent = start_contexts(text_encoder, self.num_context, (self.present, self.absent))
        self.present_context, self.absent_context = nn.Parameter(present), nn.Parameter(absent)
        lead = num_leading(text_encoder)
        self._names = NamesInContext(lead, len(absent)), NamesInContext(lead, len(present))
        return self

    def embed(self, names: tuple[str, ...], columns: Tensor | None = None) -> Tensor:
        """Return the pairs `[L, 2, D]`, not L2-normalised: index 0 is the absent embedding, index 1 the present one."""
        contexts = self.absent_context, self.present_context
        embeds = [
            own.embed(self.text_encoder, names, context, columns)
            for own, context in zip(self._names, contexts, strict=True)
        ]
        return torch.stack(embeds, dim=1)

    def embed_some(self, names: tuple[str, ...], columns: Tensor) -> Tensor:
        """Embed the names at `columns`; returns `[C, 2, D]`, or `[C, D]` where `embed` returns single embeddings."""
        return self.embed(names, columns)


class DualPrompt(DualCoOpPrompt):
    """The difference of DualCoOp's present and absent embedding, which any head takes; a variant, not DualCoOp.

    With the L2-normalised embeddings `t+` and `t-` this is `t+ - t-`, because `<f, t+ - t-> = <f, t+> - <f, t->`.
    DualCoOp itself, which weighs the patches by the present embedding alone, is `DualCoOpPrompt` with `DualCoOpHead`.

    The score of a head relates to the difference of the two dot products as follows:

    - dot products, and means of them: equal;
    - `GlobalHead` and the global stream of `TwoStreamHead`: equal up to one positive factor per image;
    - `LocalHead` and the local stream: equal for each patch; the best patches are those with the largest difference;
    - `CosineHead`: equal up to a positive factor `1 / |t+ - t-|` per label, so the sign and the ranking of images for
      a label are the same, while the ranking of labels for an image may change;
    - `SpatialSoftmaxHead`: divided by `|t+ - t-|` likewise, and the patches are weighed by the difference.

    Args:
        num_context: See `DualCoOpPrompt`.
        present: See `DualCoOpPrompt`.
        absent: See `DualCoOpPrompt`.

    Raises:
        UserError: See `DualCoOpPrompt`.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> encoder = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> prompt = DualPrompt().bind(encoder)
        >>> [tuple(p.shape) == (16, encoder.token_embedding.embedding_dim) for p in prompt.learned_parameters()]
        [True, True]
    """

    gives_pairs = False

    def __init__(
        self,
        num_context: int | None = 16,
        present: str | None = "a photo of a",
        absent: str | None = "a photo without a",
    ) -> None:
        super().__init__(num_context, present, absent)

    def embed(self, names: tuple[str, ...], columns: Tensor | None = None) -> Tensor:
        """Return the present minus the absent embedding of each name, `[L, D]`, each L2-normalised before."""
        absent, present = F.normalize(super().embed(names, columns), dim=-1).unbind(dim=1)
        return present - absent
