"""The towers of a `SiglipModel` (`vision_model` with its pooling head, `text_model` with its own)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders.clip import ImageEncoder, ImageFeatures, ImageTail
from ovml.encoders.clip_text import TextEncoder
from ovml.encoders.execution import bidirectional_block
from ovml.encoders.image_processor import check_normalized
from ovml.utils.errors import UserError

SPACE = "▁"
"""The character that sentencepiece writes for a space."""


class SiglipImageTail(ImageTail):
    """The end of SigLIP's vision tower: its last blocks, the layer norm and the attention-pooling head.

    Args:
        layers: Transformer blocks.
        post_layernorm: Applied to all tokens.
        visual_projection: The pooling head, a `SiglipMultiheadAttentionPoolingHead`.
        execution: How the blocks run.

    Example:
        >>> from transformers import SiglipConfig, SiglipModel
        >>> tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
        >>> config = SiglipConfig(vision_config={**tower, "image_size": 8, "patch_size": 4}, text_config=tower)
        >>> encoder = SiglipImageEncoder(SiglipModel(config))
        >>> encoder.tail(1)(torch.randn(2, 4, 8)).patch_embeds.shape
        torch.Size([2, 4, 8])
    """

    def pool(self, tokens: Tensor) -> ImageFeatures:
        """Pool the last, normalised hidden states `[B, P, W]`: all together, and each by itself."""
        return pool_all_and_each(self.visual_projection, tokens)


class SiglipImageEncoder(ImageEncoder):
    r"""Vision tower of SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343).

    SigLIP has no class token and no projection. A head pools the last hidden states `x_p` by attention,
    `a = W_o sum_p softmax_p(<q, W_k x_p>) W_v x_p + b`, and returns `a + MLP(LayerNorm(a))`.

    - Global embedding: the head's output, which the model was trained to match with texts.
    - Patch embedding: the head's output for the single token `x_p`. The softmax over one token is 1, so query and key
      cancel and the value path remains: `a_p = W_o W_v x_p + b`, followed by the same MLP. MaskCLIP (Zhou et al.,
      ECCV 2022, arXiv 2112.01071) reads dense features from attention pooling in this way. `a` is a weighted mean of
      the `a_p`, so global and patch embeddings share the space of the label embeddings.

    `visual_projection` is the head. It is trained wherever CLIP's projection is.

    Args:
        clip: The `SiglipModel` whose vision tower is used. Its modules are shared, not copied.
        execution: How the blocks run.

    Raises:
        UserError: The tower has no pooling head.

    Example:
        >>> from transformers import SiglipConfig, SiglipModel
        >>> tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
        >>> config = SiglipConfig(vision_config={**tower, "image_size": 8, "patch_size": 4}, text_config=tower)
        >>> features = SiglipImageEncoder(SiglipModel(config))(torch.zeros(2, 3, 8, 8))
        >>> features.global_embeds.shape, features.patch_embeds.shape
        (torch.Size([2, 8]), torch.Size([2, 4, 8]))
    """

    model_type: ClassVar[str] = "siglip"
    tail_class: ClassVar[type[ImageTail]] = SiglipImageTail

    @property
    def visual_projection(self) -> nn.Module:  # type: ignore[override]
        """The attention-pooling head."""
        head: nn.Module = self.vision_model.head
        return head

    def _set_projection(self, projection: Any) -> None:
        if projection is not None:
            self.vision_model.head = projection
        elif not getattr(self.vision_model, "use_head", False):
            raise UserError("clip: this SiglipModel pools no image embedding; give one with vision_use_head")

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Return the hidden states `[B, P, W]` that enter the first block."""
        check_normalized(pixel_values)
        hidden_states: Tensor = self.vision_model.embeddings(pixel_values)
        return hidden_states


def pool_all_and_each(head: Any, tokens: Tensor) -> ImageFeatures:
    """Run a pooling head on all tokens together and on each token alone; see `SiglipImageEncoder`.

    One pass computes both, because they share the values and everything after the attention.

    Args:
        head: A `SiglipMultiheadAttentionPoolingHead`.
        tokens: `[B, P, W]`.
    """
    attention = head.attention
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    # Two rows: a single row uses another matrix routine, whose last bits depend on the weights' memory address.
    probe = head.probe.expand(-1, 2, -1)
    query, keys, values = (
        F.linear(states, weight, bias)
        for states, weight, bias in zip((probe, tokens, tokens), weights, biases, strict=True)
    )
    own_query, own_keys, own_values = (
        part.reshape(*part.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for part in (query[:, :1].expand(tokens.shape[0], -1, -1), keys, values)
    )
    pooled = F.scaled_dot_product_attention(own_query, own_keys, own_values).transpose(1, 2).flatten(2)  # [B, 1, W]
    attended = attention.out_proj(torch.cat([pooled, values], dim=1))
    embeds = attended + head.mlp(head.layernorm(attended))
    return ImageFeatures(embeds[:, 0], embeds[:, 1:])


class SiglipTextEncoder(TextEncoder):
    """Text tower of SigLIP: embeds strings or token embeddings as `[L, D]`, not L2-normalised.

    Its attention is bidirectional and includes padding, and the output is read at the last position. So every text
    runs at the full training length (64 tokens), and neither shortcut of CLIP's causal tower applies: texts are not
    shortened to the longest of a batch, and a common beginning is computed for each text. Texts are lower-cased, as in
    training.

    Args:
        clip: The `SiglipModel` whose text tower is used. Its modules are shared, not copied.
        tokenizer: The checkpoint's tokenizer; its padding token and padding side are used.
        batch_size: Number of texts per batch. Default: see `texts_per_batch`.
        execution: How the blocks run.

    Raises:
        UserError: Image and text embeddings have different widths, or the tokenizer has no padding token.

    Example:
        `make_encoders(load_clip("google/siglip-base-patch16-224"), load_tokenizer("google/siglip-base-patch16-224"))`
    """

    def _take_projection(self, clip: Any) -> int:
        text, vision = int(self.text_model.head.out_features), int(clip.config.vision_config.hidden_size)
        if text != vision:
            raise UserError(f"clip: text embeddings of {text} values do not fit image embeddings of {vision}")
        if self.tokenizer.pad_token_id is None:
            raise UserError("tokenizer: SigLIP's text tower reads padding, and this one has no pad_token; set it")
        return text

    def tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return the unpadded token ids of each text, with its end token, and each token's character span.

        Raises:
            UserError: A text has more tokens than the tower has positions.
        """
        lowered = [text.lower() for text in texts]
        rows, spans = super().tokenize(lowered) if self.tokenizer.is_fast else self._tokenize_slowly(lowered)
        return rows, [_spans_before(text, own) for text, own in zip(texts, spans, strict=True)]

    def _tokenize_slowly(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """The same for a tokenizer that reports no spans."""
        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        self._check_tokens(texts, rows)
        special = set(self.tokenizer.all_special_tokens) - {self.tokenizer.unk_token}
        pieces = [self.tokenizer.convert_ids_to_tokens(row) for row in rows]
        words = [[None if piece in special else piece for piece in row] for row in pieces]
        return rows, [token_spans(text, row, self.tokenizer.unk_token) for text, row in zip(texts, words, strict=True)]

    def encode(self, token_embeds: Tensor, lengths: Tensor, num_shared: int = 0, deep_tokens: Any = None) -> Tensor:
        """Pad token embeddings to the full length, run them through the tower and read the last position.

        Args:
            token_embeds: `[N, T, W]`, without position embeddings; tokens after the end token become padding.
            lengths: `[N]`, number of tokens up to and including the end token.
            num_shared: Ignored: with bidirectional attention, shared tokens differ after the first block.
            deep_tokens: Not supported: texts have no start token.

        Returns:
            Text embeddings `[N, D]`.
        """
        text = self.text_model
        hidden_states = text.embeddings(inputs_embeds=self.pad(token_embeds, lengths))
        hidden_states = self.execution.run(bidirectional_block, text.encoder.layers, hidden_states)
        embeds: Tensor = text.head(text.final_layer_norm(hidden_states[:, -1]))
        return embeds

    def _run_length(self, longest: int) -> int:
        return self.context_length

    def pad(self, token_embeds: Tensor, lengths: Tensor) -> Tensor:
        """Pad token embeddings `[N, T, W]` to `[N, context_length, W]` as the tokenizer pads."""
        place = torch.arange(self.context_length, device=token_embeds.device).expand(len(token_embeds), -1)
        if self.tokenizer.padding_side == "left":
            place = place - (self.context_length - lengths).unsqueeze(1)
        inside = ((place >= 0) & (place < lengths.unsqueeze(1))).unsqueeze(-1)
        index = place.clamp(0, token_embeds.shape[1] - 1).unsqueeze(-1).expand(-1, -1, token_embeds.shape[2])
        padding = self.token_embedding.weight[self.tokenizer.pad_token_id].to(token_embeds.dtype)
        return torch.where(inside, token_embeds.gather(1, index), padding)


def token_spans(text: str, pieces: Sequence[str | None], unknown: str | None = None) -> list[tuple[int, int]]:
    """Find the character spans of sentencepiece tokens, for tokenizers that do not report offsets.

    The characters of each piece are searched in order; characters that the tokenizer dropped (punctuation, spaces)
    are skipped.

    Args:
        text: The tokenised text.
        pieces: Its tokens; `None` for a token without characters.
        unknown: The unknown token.

    Returns:
        Start and end of each token; `(0, 0)` for `None`.

    >>> token_spans("a (red) cat", ["▁a", "▁re", "d", "▁cat", None])
    [(0, 1), (3, 5), (5, 6), (8, 11), (0, 0)]
    """
    spans, cursor = [], 0
    for piece in pieces:
        if piece is None:
            spans.append((0, 0))
            continue
        begin = end = cursor
        for position, character in enumerate("?" if piece == unknown else piece.replace(SPACE, "")):
            if piece == unknown:
                found = next((i for i in range(cursor, len(text)) if _is_word(text[i])), -1)
            else:
                found = text.find(character, end)
            if found < 0:  # the tokenizer normalised this character
                continue
            begin, end = (found if position == 0 else begin), found + 1
        spans.append((begin, end))
        cursor = end
    return spans


def _is_word(character: str) -> bool:
    return character not in string.punctuation and not character.isspace()


def _spans_before(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of a lower-cased text as those of the text itself: a few letters, as in İstanbul, become two."""
    if len(text) == len(text.lower()):
        return spans
    origin = [position for position, letter in enumerate(text) for _ in letter.lower()]
    return [(origin[begin], origin[end - 1] + 1) if begin < end else (0, 0) for begin, end in spans]
