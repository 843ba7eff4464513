"""DualCoOp's prompt tuning: one context says that the label is there, another that it is not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import TextEncoder
from ovml.prompts.base import PromptLearner
from ovml.prompts.coop import NamesInContext, check_context, num_leading, start_contexts
from ovml.utils.errors import UserError


class DualPrompt(PromptLearner):
    """A pair of learned contexts, present and absent (DualCoOp; Sun et al., NeurIPS 2022, arXiv 2206.09541).

    The text tower reads each name twice, as `[V+]_1 ... [V+]_M [NAME]` and `[V-]_1 ... [V-]_M [NAME]`; both contexts
    are shared by all labels. With the embeddings `t+` and `t-`, L2-normalised, the paper compares two logits for each
    label: `p = exp<f, t+> / (exp<f, t+> + exp<f, t->)`, up to a temperature the sigmoid of
    `<f, t+> - <f, t->`. A head of ovml takes one embedding a label, so this learner gives `t+ - t-`:
    `<f, t+ - t-> = <f, t+> - <f, t->`.

    How far a head's score is that difference:

    - a plain dot product, also of both streams averaged: it is;
    - `GlobalHead`, and the global stream of `TwoStreamHead`: up to one positive factor for all labels of an image;
    - `LocalHead`, and the local stream: each patch's dot product is; the best patches are those where it is greatest;
    - `CosineHead`: up to a positive factor `1 / |t+ - t-|` that differs from label to label, so its sign and a label's
      order of images stay, an image's order of labels does not.

    Args:
        num_context: `M`, the number of vectors in each context. `None`: as many as the longer of the words has tokens.
        present: Words that the last vectors of the present context start as, `None` for random ones; see `CoOpPrompt`.
        absent: The same of the absent context.

    Raises:
        UserError: An argument does not fit (see `CoOpPrompt`), or both contexts start as the same words.

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
        """Attach the tower and make the vectors `present_context` and `absent_context`, `[M, W]` each."""
        super().bind(text_encoder)
        contexts = start_contexts(text_encoder, self.num_context, (self.present, self.absent))
        self.present_context, self.absent_context = map(nn.Parameter, contexts)
        self._names = NamesInContext(num_leading(text_encoder), len(contexts[0]))
        return self

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Present minus absent embedding of each name, `[L, D]`."""
        present, absent = self.embed_pair(names)
        return present - absent

    def embed_pair(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Present and absent embeddings `[L, D]`, each L2-normalised."""
        present, absent = (
            F.normalize(self._names.embed(self.text_encoder, names, context), dim=-1)
            for context in (self.present_context, self.absent_context)
        )
        return present, absent
