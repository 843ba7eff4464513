"""RAM's prompt tuning: learned tokens in the last blocks of the text tower."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from ovml.encoders import TextEncoder, TokenizedTexts
from ovml.prompts.base import PromptLearner
from ovml.prompts.coop import num_leading
from ovml.prompts.template import TemplatePrompt
from ovml.prompts.tokens import KeptTokens
from ovml.utils.errors import UserError, check_positive
from ovml.utils.tensors import through_float16
from ovml.vocabulary import check_template


class DeepPrompt(PromptLearner):
    """A fixed template and learned tokens in the last blocks of the text tower (RAM; Tan et al., CVPR 2025).

    Each of the last `num_layers` blocks reads `num_tokens` tokens of its own behind the start token; they are taken
    out after the block. All labels share them, so any name can be embedded. In training, the original CLIP teaches with
    the embeddings of the template without tokens (`original`).

    Args:
        template: With `{}` in place of the name.
        num_layers: Number of last blocks with tokens. The published code has them in 6 for NUS-WIDE, in 3 for COCO.
        num_tokens: Number of tokens of a block; they start as N(0, 0.02^2).
        float16_tokens: Whether tokens are rounded to float16 in each pass, and so are their gradients, as in the
            published code.

    Raises:
        UserError: An argument is invalid; or, in `bind`, the tower has fewer blocks, or its texts no start token.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> prompt = DeepPrompt(num_layers=2).bind(TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo")))
        >>> prompt.tokens.shape[:2], prompt(["red circle", "star"]).shape[0]
        (torch.Size([2, 4]), 2)
    """

    embeds_apart = True

    tokens: nn.Parameter

    def __init__(
        self, template: str = "A photo of a {}.", num_layers: int = 6, num_tokens: int = 4, float16_tokens: bool = True
    ) -> None:
        super().__init__()
        self.template = check_template(template)
        check_positive(self, num_layers=num_layers, num_tokens=num_tokens)
        self.num_layers = num_layers
        self.num_tokens = num_tokens
        self.float16_tokens = float16_tokens

    def bind(self, text_encoder: TextEncoder) -> DeepPrompt:
        """Attach a text tower and create `tokens [num_layers, num_tokens, W]`."""
        super().bind(text_encoder)
        depth, context = len(text_encoder.text_model.encoder.layers), text_encoder.context_length
        if self.num_layers > depth or self.num_tokens > context - 2:
            raise UserError(
                f"DeepPrompt: num_layers must be at most {depth}, the text tower's blocks, and num_tokens at most "
                f"{context - 2}; got {self.num_layers} and {self.num_tokens}"
            )
        if not num_leading(text_encoder):
            raise UserError("DeepPrompt: needs a CLIP, whose texts begin with a start token; use CoOpPrompt")
        self._first = depth - self.num_layers
        self._tokens = KeptTokens()
        table = text_encoder.token_embedding.weight
        tokens = 0.02 * torch.randn(self.num_layers, self.num_tokens, table.shape[1])
        self.tokens = nn.Parameter(tokens.to(table))
        self.__dict__.pop("original", None)
        return self

    @cached_property
    def original(self) -> TemplatePrompt:
        """The template without tokens."""
        prompt = TemplatePrompt(self.template)
        prompt.bind(self.text_encoder)
        return prompt

    def embed(self, names: tuple[str, ...], columns: Tensor | None = None) -> Tensor:
        """Embed names in the template; returns `[L, D]`."""
        tokens = through_float16(self.tokens) if self.float16_tokens else self.tokens
        deep_tokens = dict(enumerate(tokens.unbind(), start=self._first))
        texts = self._tokens.of(names, self._tokenize)
        return self.text_encoder.embed(texts, columns=columns, deep_tokens=deep_tokens)

    def embed_some(self, names: tuple[str, ...], columns: Tensor) -> Tensor:
        """Embed the names at `columns`; returns `[C, D]`."""
        return self.embed(names, columns)

    def _tokenize(self, names: tuple[str, ...]) -> TokenizedTexts:
        return TokenizedTexts(self.text_encoder.tokenize([self.template.replace("{}", name) for name in names])[0])
