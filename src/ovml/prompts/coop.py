"""CoOp's prompt tuning: free vectors around the label's name learn."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ovml.encoders import TextEncoder
from ovml.prompts.base import PromptLearner
from ovml.prompts.mixed import MixedBatches, embed_mixed, mixed_batches
from ovml.utils.errors import UserError


class CoOpPrompt(PromptLearner):
    """Context vectors shared by all labels (CoOp, unified context; Zhou et al., IJCV 2022, arXiv 2109.01134).

    The text tower reads `[V]_1 ... [V]_M [NAME]`, or with the name in the middle
    `[V]_1 ... [V]_{M/2} [NAME] [V]_{M/2+1} ... [V]_M`, between start and end token; a head scores what comes out, in
    the paper by the cosine. The vectors belong to no word and to no label: unseen names are read in the same context.
    The paper's vectors of one label each, which have none for an unseen name, are left out.

    At the end is cheapest: all labels then begin with the same tokens, which are computed once. A context that starts
    as words alone is a template: untrained, `CoOpPrompt(None, "a photo of a")` gives what
    `TemplatePrompt("a photo of a {}")` gives.

    Args:
        num_context: `M`, the number of vectors. `None`: as many as `init` has tokens.
        init: Words that the last of the vectors start as; those before are drawn from a normal distribution
            of standard deviation 0.02, as all are with `None`.
        name_position: `"end"` or `"middle"` of the context.

    Raises:
        UserError: An argument is not one of these, or (in `bind`) the words do not fit into the vectors, or the
            vectors into the text tower.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> encoder = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> prompt = CoOpPrompt(num_context=8).bind(encoder)
        >>> prompt.context.shape[0], prompt(["red circle", "star"]).shape[0]
        (8, 2)
    """

    context: nn.Parameter

    def __init__(
        self,
        num_context: int | None = None,
        init: str | None = "a photo of a",
        name_position: Literal["end", "middle"] = "end",
    ) -> None:
        super().__init__()
        check_context(num_context, (init,))
        if name_position not in ("end", "middle"):
            raise UserError(f"name_position must be 'end' or 'middle' of the context; got {name_position!r}")
        self.num_context = num_context
        self.init = init
        self.name_position = name_position

    def bind(self, text_encoder: TextEncoder) -> CoOpPrompt:
        """Attach the tower and make the vectors `context [M, W]`."""
        super().bind(text_encoder)
        (context,) = start_contexts(text_encoder, self.num_context, (self.init,))
        self.context = nn.Parameter(context)
        before = len(context) if self.name_position == "end" else len(context) // 2
        self._names = NamesInContext(num_leading(text_encoder), before, len(context) - before)
        return self

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Run the names inside the learned vectors; returns `[L, D]`."""
        return self._names.embed(self.text_encoder, names, self.context)


class NamesInContext:
    """Names with `num_before` vectors before and `num_after` after them; tokenised once per vocabulary.

    Args:
        num_leading: Tokens that the tokenizer puts before any text.
        num_before: Vectors between these and the name.
        num_after: Vectors between the name and the end token.
    """

    def __init__(self, num_leading: int, num_before: int, num_after: int = 0) -> None:
        self.num_leading = num_leading
        self.num_before = num_before
        self.num_after = num_after
        self._batches: dict[tuple[str, ...], MixedBatches] = {}

    def embed(self, text_encoder: TextEncoder, names: tuple[str, ...], context: Tensor) -> Tensor:
        """Embed names.

        Args:
            text_encoder: The tower.
            names: `L` checked names.
            context: The vectors `[M, W]`, first those before the name.

        Returns:
            `[L, D]`.

        Raises:
            UserError: A name is too long for the tower.
        """
        if names not in self._batches:
            # Training asks for one vocabulary, evaluation for a few.
            self._batches = {**dict(list(self._batches.items())[-3:]), names: self._tokenize(text_encoder, names)}
        return embed_mixed(text_encoder, self._batches[names], context)

    def _tokenize(self, text_encoder: TextEncoder, names: tuple[str, ...]) -> MixedBatches:
        lead, before, num_context = self.num_leading, self.num_before, self.num_before + self.num_after
        ids, rows = [], []
        for name, tokens in zip(names, text_encoder.tokenize(names)[0], strict=True):
            own = tokens[lead:-1]
            if len(tokens) + num_context > text_encoder.context_length:
                raise UserError(
                    f"label too long: {name!r} is {len(own)} tokens, beside the prompt's {num_context} the text tower "
                    f"takes {text_encoder.context_length - lead - 1 - num_context}; shorten it or take a smaller "
                    "num_context"
                )
            ids.append([*tokens[:lead], *[0] * before, *own, *[0] * self.num_after, tokens[-1]])
            rows.append([*[-1] * lead, *range(before), *[-1] * len(own), *range(before, num_context), -1])
        return mixed_batches(ids, rows, text_encoder.batch_size)


def num_leading(text_encoder: TextEncoder) -> int:
    """How many tokens stand before any text: CLIP's tokenizer has a start token, SigLIP's has none."""
    (spans,) = text_encoder.tokenize(["a"])[1]
    return next(i for i, (begin, end) in enumerate(spans) if begin < end)


def check_context(num_context: int | None, inits: tuple[str | None, ...]) -> None:
    """Check the number of context vectors and the words that they start as.

    Raises:
        UserError: The number is not positive, is `None` without words to count, or words are empty.
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
    """Context vectors before training, of one number for all the words given.

    Args:
        text_encoder: The tower, whose token table the words are read from.
        num_context: `M`. `None`: as many as the longest of the words has tokens.
        inits: Words that the last vectors of each context start as.

    Returns:
        For each of `inits` vectors `[M, W]`.

    Raises:
        UserError: Words have more tokens than there are vectors, or the vectors leave no room for a name.
    """
    table = text_encoder.token_embedding.weight.detach()
    lead = num_leading(text_encoder)
    words = [[] if init is None else text_encoder.tokenize([init])[0][0][lead:-1] for init in inits]
    num_context = max(map(len, words)) if num_context is None else num_context
    room = text_encoder.context_length - lead - 2  # beside a name of one token and the end token
    if num_context > room:
        raise UserError(
            f"num_context: the text tower takes {text_encoder.context_length} tokens, which leaves {room} vectors "
            f"beside start, name and end; got {num_context}"
        )
    contexts = []
    for init, ids in zip(inits, words, strict=True):
        if len(ids) > num_context:
            raise UserError(
                f"context {init!r} is {len(ids)} tokens; give num_context at least as many, not {num_context}"
            )
        context = 0.02 * torch.randn(num_context, table.shape[1], dtype=table.dtype, device=table.device)
        if ids:
            context[-len(ids) :] = table[ids]
        contexts.append(context)
    return tuple(contexts)
