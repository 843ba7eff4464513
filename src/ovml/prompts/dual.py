"""DualCoOp's prompt tuning: one trained context for present labels and one for absent labels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import TextEncoder
from ovml.prompts.base import PromptLearner
from ovml.prompts.coop import NamesInContext, check_context, num_leading, start_contexts
from ovml.utils.errors import UserError


class DualPrompt(PromptLearner):
    """A pair of trained contexts, present and absent (DualCoOp; Sun et al., NeurIPS 2022, arXiv 2206.09541).

    The text tower reads each name twice, as `[V+]_1 ... [V+]_M [NAME]` and `[V-]_1 ... [V-]_M [NAME]`. All labels
    share both contexts. With the L2-normalised embeddings `t+` and `t-`, the paper compares two logits per label:
    `p = exp<f, t+> / (exp<f, t+> + exp<f, t->)`, which is the sigmoid of `<f, t+> - <f, t->` up to a temperature.
    A head takes one embedding per label, so this class returns `t+ - t-`; `<f, t+ - t-> = <f, t+> - <f, t->`.

    The score of a head relates to that difference as follows:

    - dot products, and means of them: equal;
    - `GlobalHead` and the global stream of `TwoStreamHead`: equal up to one positive factor per image;
    - `LocalHead` and the local stream: equal for each patch; the best patches are those with the largest difference;
    - `CosineHead`: equal up to a positive factor `1 / |t+ - t-|` per label, so the sign and the ranking of images for
      a label are the same, while the ranking of labels for an image may change.

    Args:
        num_context: Number of vectors `M` in each context. `None`: the larger number of tokens of `present` and
            `absent`.
        present: Words that initialise the last vectors of the present context; `None` for random vectors. See
            `CoOpPrompt`.
        absent: The same for the absent context.

    Raises:
        UserError: An argument is invalid (see `CoOpPrompt`), or both contexts start with the same words.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> encoder = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> prompt = DualPrompt().bind(encoder)
        >>> [tuple(p.shape) == (16, encoder.token_embedding.embedding_dim) for p in prompt.learned_parameters()]
        [True, True]
    """

    present_context: nn.Parameter
    absent_context: nn.Parameter

    def __init__(
        self,
        num_context: int | None = 16,
        present: str | None = "a photo of a",
        absent: str | None = "a photo without a",
    ) -> None:
        super().__init__()
        check_context(num_context, (present, absent))
        if present is not None and present == absent:
            raise UserError(f"present and absent both start as {present!r}: give them different words, or None")
        self.num_context = num_context
        self.present = present
        self.absent = absent

    def bind(self, text_encoder: TextEncoder) -> DualPrompt:
        """Attach a text tower and create the vectors `present_context` and `absent_context`, `[M, W]` each."""
        super().bind(text_encoder)
        contexts = start_contexts(text_encoder, self.num_context, (self.present, self.absent))
        self.present_context, self.absent_context = map(nn.Parameter, contexts)
        self._names = NamesInContext(num_leading(text_encoder), len(contexts[0]))
        return self

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Return the present minus the absent embedding of each name, `[L, D]`."""
        present, absent = self.embed_pair(names)
        return present - absent

    def embed_pair(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Return present and absent embeddings, `[L, D]` each, L2-normalised."""
        present, absent = (
            F.normalize(self._names.embed(self.text_encoder, names, context), dim=-1)
            for context in (self.present_context, self.absent_context)
        )
        return present, absent
