"""MKT's prompt tuning: the words around the label learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovml.encoders import TextEncoder
from ovml.prompts.base import MKT_TEMPLATE, PromptLearner, check_template
from ovml.prompts.mixed import MixedBatches, embed_mixed, mixed_batches


class ContextPrompt(PromptLearner):
    """Learned context shared by all labels (He et al., AAAI 2023, sec. 3.4).

    The published code trains the whole token table and puts the original embeddings back where the label's own
    name stands. What reaches the text tower is then the table's rows for the template's words and the start and
    end token; every other row learns nothing that is ever read. So only those rows are parameters here
    (`context [T, W]`, one row for each different token of the template): the same numbers at a fraction of the
    memory and optimizer state.

    Args:
        template: Where the context starts, with `{}` where the name goes.

    Raises:
        UserError: The template does not hold `{}` exactly once.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> prompt = ContextPrompt().bind(TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo")))
        >>> len(prompt.context)  # start, there, is, a, in, the, scene, end
        8
    """

    context: nn.Parameter
    context_ids: Tensor

    def __init__(self, template: str = MKT_TEMPLATE) -> None:
        super().__init__()
        self.template = check_template(template)
        self._tokens: dict[tuple[str, ...], MixedBatches] = {}

    def bind(self, text_encoder: TextEncoder) -> ContextPrompt:
        """Attach the tower and start the context from its token table."""
        super().bind(text_encoder)
        ids, spans = text_encoder.tokenize([self.template.replace("{}", "x")])
        context_ids = [i for i, own in zip(ids[0], self._is_name(spans[0], "x"), strict=True) if not own]
        self.register_buffer("context_ids", torch.tensor(sorted(set(context_ids))), persistent=False)
        self.context = nn.Parameter(text_encoder.token_embedding.weight.detach()[self.context_ids].clone())
        return self

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Run the names inside the learned context; returns `[L, D]`."""
        if names not in self._tokens:
            # Training asks for one vocabulary, evaluation for a few: tokenised once, not at every step.
            self._tokens = {**dict(list(self._tokens.items())[-3:]), names: self._tokenize(names)}
        return embed_mixed(self.text_encoder, self._tokens[names], self.context)

    def _is_name(self, spans: list[tuple[int, int]], name: str) -> list[bool]:
        start = self.template.index("{}")
        return [begin < start + len(name) and end > start for begin, end in spans]

    def _tokenize(self, names: tuple[str, ...]) -> MixedBatches:
        ids, spans = self.text_encoder.tokenize([self.template.replace("{}", name) for name in names])
        row_of = {int(token): row for row, token in enumerate(self.context_ids)}
        # A token outside the name that the template alone does not have (punctuation that merges with the name)
        # keeps its original embedding.
        rows = [
            [-1 if own else row_of.get(token, -1) for token, own in zip(row, self._is_name(span, name), strict=True)]
            for row, span, name in zip(ids, spans, names, strict=True)
        ]
        return mixed_batches(ids, rows, self.text_encoder.batch_size)
