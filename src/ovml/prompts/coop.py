"""CoOp's prompt tuning: trained context vectors around the label's name."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ovml.encoders import TextEncoder, TokenizedTexts
from ovml.prompts.base import PromptLearner
from ovml.prompts.tokens import KeptTokens
from ovml.utils.errors import UserError, beginning


class CoOpPrompt(PromptLearner):
    """Trained context vectors shared by all labels (CoOp, unified context; Zhou et al., IJCV 2022, arXiv 2109.01134).

    Between start and end token the text tower reads, by `name_position`:

    - `end`: `[V]_1 ... [V]_M [NAME] .`
    - `middle`: `[V]_1 ... [V]_{M/2} [NAME] [V]_{M/2+1} ... [V]_M .`; the smaller half first if `M` is odd
    - `front`: `[NAME] [V]_1 ... [V]_M .`

    `_` in names and words is read as a space. A head scores the output; the paper uses the cosine. Unseen names use the
    same vectors. The paper's class-specific contexts are not implemented, because unseen names have none.

    Position `end` is fastest, because all texts then share a prefix that is computed once. An untrained
    `CoOpPrompt(None, "a photo of a")` equals `TemplatePrompt("a photo of a {}.")`.

    Args:
        num_context: Number of vectors `M`. `None`: the number of tokens of `init`.
        init: Words that initialise the last vectors. The vectors before them, or all vectors if `init` is `None`, are
            drawn from a normal distribution with standard deviation 0.02.
        name_position: `end`, `middle` or `front` of the context.

    Raises:
        UserError: An argument is invalid, or (in `bind`) `init` has more tokens than `num_context`, or the vectors
            leave no room for a name.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> encoder = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> prompt = CoOpPrompt(num_context=8).bind(encoder)
        >>> prompt.context.shape[0], prompt(["red circle", "star"]).shape[0]
        (8, 2)
    """

    embeds_apart = True

    context: nn.Parameter

    def __init__(
        self,
        num_context: int | None = None,
        init: str | None = "a photo of a",
        name_position: Literal["end", "middle", "front"] = "end",
    ) -> None:
        super().__init__()
        check_context(num_context, (init,))
        self.num_context = num_context
        self.init = init
        self.name_position = name_position

    def bind(self, text_encoder: TextEncoder) -> CoOpPrompt:
        """Attach a text tower and create the vectors `context [M, W]`."""
        super().bind(text_encoder)
        (context,) = start_contexts(text_encoder, self.num_context, (self.init,))
        self.context = nn.Parameter(context)
        before = {"end": len(context), "middle": len(context) // 2, "front": 0}[self.name_position]
        self._names = NamesInContext(num_leading(text_encoder), before, len(context) - before)
        return self

    def embed(self, names: tuple[str, ...], columns: Tensor | None = None) -> Tensor:
        """Embed names within the context vectors; returns `[L, D]`."""
        return self._names.embed(self.text_encoder, names, self.context, columns)

    def embed_some(self, names: tuple[str, ...], columns: Tensor) -> Tensor:
        """Embed the names at `columns`; returns `[C, D]`."""
        return self.embed(names, columns)


class NamesInContext:
    """Embeds names with context vectors before and after them and a full stop at the end, as published.

    Each vocabulary is tokenised once.

    Args:
        num_leading: Number of tokens that the tokenizer puts before any text.
        num_before: Number of vectors between those tokens and the name.
        num_after: Number of vectors between the name and the full stop.
    """

    def __init__(self, num_leading: int, num_before: int, num_after: int = 0) -> None:
        self.num_leading = num_leading
        self.num_before = num_before
        self.num_after = num_after
        self._tokens = KeptTokens()

    def embed(
        self, text_encoder: TextEncoder, names: tuple[str, ...], context: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        """Embed names.

        Args:
            text_encoder: The text tower.
            names: `L` checked names.
            context: Vectors `[M, W]`; those before the name come first.
            columns: Positions of the names to embed, on the CPU. Default: all.

        Returns:
            `[L, D]`.

        Raises:
            UserError: A name is too long for the tower.
        """
        tokens = self._tokens.of(names, lambda some: self._tokenize(text_encoder, some))
        return text_encoder.embed(tokens, context, columns)

    def _tokenize(self, text_encoder: TextEncoder, names: tuple[str, ...]) -> TokenizedTexts:
        lead, before, num_context = self.num_leading, self.num_before, self.num_before + self.num_after
        ids, rows = [], []
        read = [name.replace("_", " ") for name in names]
        for name, tokens, spans in zip(read, *text_encoder.tokenize([f"{name}." for name in read]), strict=True):
            end = 1 + max((i for i, (a, b) in enumerate(spans) if a < min(b, len(name))), default=lead - 1)
            rest = len(tokens) - end  # the end token and, unless the name's last token holds it, the full stop
            if len(tokens) + num_context > text_encoder.context_length:
                raise UserError(
                    f"label too long: {beginning(name)!r} is {end - lead} tokens, beside the prompt's {num_context} "
                    f"and a full stop the text tower takes {text_encoder.context_length - lead - rest - num_context}; "
                    "shorten it or take a smaller num_context"
                )
            ids.append([*tokens[:lead], *[0] * before, *tokens[lead:end], *[0] * self.num_after, *tokens[end:]])
            rows.append([*[-1] * lead, *range(before), *[-1] * (end - lead), *range(before, num_context), *[-1] * rest])
        return TokenizedTexts(ids, rows)


def num_leading(text_encoder: TextEncoder) -> int:
    """Count the tokens before any text: CLIP's tokenizer has a start token, SigLIP's has none."""
    (spans,) = text_encoder.tokenize(["a"])[1]
    return next(i for i, (begin, end) in enumerate(spans) if begin < end)


def check_context(num_context: int | None, inits: tuple[str | None, ...]) -> None:
    """Check the number of context vectors and their initial words.

    Raises:
        UserError: The number is not positive, is `None` without words to count, or the words are empty.
    """
    if num_context is not None and num_context < 1:
        raise UserError(f"num_context must be at least 1; got {num_context}")
    if num_context is None and None in inits:
        raise UserError("num_context: None counts the tokens of the words to start from; give words or a number")
    for init in inits:
        if init is not None and not init.strip():
            raise UserError(f"context {init!r} has no words; give some, or None to start from random vectors")
        if init is not None and "{}" in init:
            raise UserError(f"context {init!r}: these are the words beside the name; leave {{}} out")


def start_contexts(
    text_encoder: TextEncoder, num_context: int | None, inits: tuple[str | None, ...]
) -> tuple[Tensor, ...]:
    """Make the initial vectors of one or more contexts.

    Args:
        text_encoder: The text tower; its token table embeds the words.
        num_context: Number of vectors `M`. `None`: each context's number of tokens in its words.
        inits: Words that initialise the last vectors of each context; `None` for random vectors.

    Returns:
        Vectors `[M, W]` for each of `inits`.

    Raises:
        UserError: Words have more tokens than `num_context`, or the vectors leave no room for a name.
    """
    table = text_encoder.token_embedding.weight.detach()
    lead = num_leading(text_encoder)
    room = text_encoder.context_length - lead - 3  # beside a name of one token, the full stop and the end token
    contexts = []
    for init in inits:
        ids = [] if init is None else text_encoder.tokenize([init.replace("_", " ")])[0][0][lead:-1]
        length = len(ids) if num_context is None else num_context
        if length > room:
            raise UserError(
                f"num_context: the text tower takes {text_encoder.context_length} tokens, which leaves {room} vectors "
                f"beside start, name, full stop and end; got {length}"
            )
        if len(ids) > length:
            raise UserError(f"context {init!r} is {len(ids)} tokens; give num_context at least as many, not {length}")
        context = 0.02 * torch.randn(length, table.shape[1], dtype=table.dtype, device=table.device)
        if ids:
            context[-len(ids) :] = table[ids]
        contexts.append(context)
    return tuple(contexts)
