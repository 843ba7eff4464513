"""MKT's prompt tuning: the words of the template are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovml.encoders import TextEncoder, TokenizedTexts
from ovml.prompts.base import MKT_TEMPLATE, PromptLearner
from ovml.prompts.tokens import KeptTokens
from ovml.vocabulary import check_template


class ContextPrompt(PromptLearner):
    """Trained context words shared by all labels (MKT's prompt tuning; He et al., AAAI 2023, arXiv 2207.01887).

    The published code trains the whole token table and restores the original embeddings at the positions of the
    label's own name. Only the rows of the template's words and of the start and end token then reach the text tower.
    This class makes only those rows parameters (`context [T, W]`, one row per distinct token of the template). The
    results are the same, with a fraction of the memory and optimizer state.

    Args:
        template: Initial context, with `{}` in place of the name.

    Raises:
        UserError: The template does not contain `{}` exactly once.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> prompt = ContextPrompt().bind(TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo")))
        >>> len(prompt.context)  # start, there, is, a, in, the, scene, end
        8
    """

    embeds_apart = True

    context: nn.Parameter
    context_ids: Tensor

    def __init__(self, template: str = MKT_TEMPLATE) -> None:
        super().__init__()
        self.template = check_template(template)

    def bind(self, text_encoder: TextEncoder) -> ContextPrompt:
        """Attach a text tower and initialise the context from its token table."""
        super().bind(text_encoder)
        self._tokens = KeptTokens()
        ids, spans = text_encoder.tokenize([self.template.replace("{}", "x")])
        context_ids = [i for i, own in zip(ids[0], self._is_name(spans[0], "x"), strict=True) if not own]
        self.register_buffer("context_ids", torch.tensor(sorted(set(context_ids))), persistent=False)
        self.context = nn.Parameter(text_encoder.token_embedding.weight.detach()[self.context_ids].clone())
        return self

    def embed(self, names: tuple[str, ...], columns: Tensor | None = None) -> Tensor:
        """Embed names within the trained context; returns `[L, D]`."""
        return self.text_encoder.embed(self._tokens.of(names, self._tokenize), self.context, columns)

    def embed_some(self, names: tuple[str, ...], columns: Tensor) -> Tensor:
        """Embed the names at `columns`; returns `[C, D]`."""
        return self.embed(names, columns)

    def _is_name(self, spans: list[tuple[int, int]], name: str) -> list[bool]:
        start = self.template.index("{}")
        return [begin < start + len(name) and end > start for begin, end in spans]

    def _tokenize(self, names: tuple[str, ...]) -> TokenizedTexts:
        ids, spans = self.text_encoder.tokenize([self.template.replace("{}", name) for name in names])
        row_of = {int(token): row for row, token in enumerate(self.context_ids)}
        # A token outside the name that is not in the template (punctuation that merges with the name) keeps its
        # original embedding.
        rows = [
            [-1 if own else row_of.get(token, -1) for token, own in zip(row, self._is_name(span, name), strict=True)]
            for row, span, name in zip(ids, spans, names, strict=True)
        ]
        return TokenizedTexts(ids, rows)
