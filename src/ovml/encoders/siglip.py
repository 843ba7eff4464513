"""The towers of a `SiglipModel` (`vision_model` with its pooling head, `text_model` with its own)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders.clip import ImageEncoder, ImageFeatures, ImageTail, TextEncoder
from ovml.encoders.execution import run_bidirectional_blocks
from ovml.utils.errors import UserError

SPACE = "▁"
"""What stands for a blank in a sentencepiece token."""


class SiglipImageTail(ImageTail):
    """The end of SigLIP's vision tower: its last blocks, the layer norm and the attention-pooling head.

    Args:
        layers: Transformer blocks.
        post_layernorm: Applied to all tokens.
        visual_projection: The head, a `SiglipMultiheadAttentionPoolingHead`.
        execution: How the blocks are run.

    Example:
        >>> from transformers import SiglipConfig, SiglipModel
        >>> tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
        >>> config = SiglipConfig(vision_config={**tower, "image_size": 8, "patch_size": 4}, text_config=tower)
        >>> encoder = SiglipImageEncoder(SiglipModel(config))
        >>> encoder.tail(1)(torch.randn(2, 4, 8)).patch_embeds.shape
        torch.Size([2, 4, 8])
    """

    def pool(self, tokens: Tensor) -> ImageFeatures:
        """Embeddings of the last, normed hidden states `[B, P, W]`: all pooled by the head, and each by itself."""
        return pool_all_and_each(self.visual_projection, tokens)


class SiglipImageEncoder(ImageEncoder):
    r"""Vision tower of SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343).

    It has no class token and no projection: a head pools the last hidden states `x_p` by attention,
    `a = W_o sum_p softmax_p(<q, W_k x_p>) W_v x_p + b`, and gives `a + MLP(LayerNorm(a))`.

    - Global embedding: the head's own output, which the model was trained to match with texts.
    - Patch embedding: the head's output where `x_p` is all there is to attend to. The softmax over one token is 1, so
      that query and key fall out and the value's path remains: `a_p = W_o W_v x_p + b`. That is how MaskCLIP (Zhou et
      al., ECCV 2022, arXiv 2112.01071) reads dense features off a pooling by attention, here with the MLP
      that follows. `a` is a weighted mean of the `a_p`, so both lie in the space of the label embeddings.

    `visual_projection` is the head: it learns where CLIP's projection does.

    Args:
        clip: A `SiglipModel`, whose vision tower is used (its modules are shared, not copied).
        execution: How the blocks are run.

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

    def _take_projection(self, clip: Any) -> None:
        if not getattr(self.vision_model, "use_head", False):
            raise UserError("clip: this SiglipModel pools no image embedding; give one with vision_use_head")

    def replace_tail(self, tail: ImageTail) -> None:
        """Put other modules in the place of the last blocks, the layer norm and the head."""
        layers = self.vision_model.encoder.layers
        for position, layer in enumerate(tail.layers, start=self.num_layers - len(tail.layers)):
            layers[position] = layer
        self.vision_model.post_layernorm = tail.post_layernorm
        self.vision_model.head = tail.visual_projection

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Hidden states `[B, P, W]` that enter the first block."""
        hidden_states: Tensor = self.vision_model.embeddings(pixel_values)
        return hidden_states


def pool_all_and_each(head: Any, tokens: Tensor) -> ImageFeatures:
    """A pooling head's output for all tokens together, and for each alone: see `SiglipImageEncoder`.

    Both in one pass, since they have the values and all that follows in common.

    Args:
        head: A `SiglipMultiheadAttentionPoolingHead`.
        tokens: `[B, P, W]`.
    """
    attention = head.attention
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    # Two rows: a single one is multiplied by another routine, whose last bits depend on where in memory weights lie.
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
    """Text tower of SigLIP from strings or token embeddings to text embeddings `[L, D]`, not L2-normalised.

    Its tokens see each other in both directions, padding too, and it is read at the last position whatever stands
    there. So every text runs at the full length that it was trained with (64 tokens), and neither of the causal
    tower's two savings applies: texts are not cut to the longest of a batch, and a beginning that they share is
    computed for each. Texts are read in lower case, as in training.

    Args:
        clip: A `SiglipModel`, whose text tower is used (its modules are shared, not copied).
        tokenizer: The checkpoint's tokenizer. It pads with its own token on its own side.
        batch_size: Texts run at once.
        execution: How the blocks are run.

    Raises:
        UserError: Image and text embeddings are of different width, or the tokenizer has no padding.

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
        """Token ids of each text with its end token, unpadded, and each token's character span.

        Raises:
            UserError: A text has more tokens than the tower has positions.
        """
        lowered = [_lower(text) for text in texts]
        if self.tokenizer.is_fast:
            return super().tokenize(lowered)
        rows = self.tokenizer(lowered, verbose=False)["input_ids"]
        self._check_lengths(texts, rows)
        special = set(self.tokenizer.all_special_tokens) - {self.tokenizer.unk_token}
        pieces = [self.tokenizer.convert_ids_to_tokens(row) for row in rows]
        words = [[None if piece in special else piece for piece in row] for row in pieces]
        return rows, [
            token_spans(text, row, self.tokenizer.unk_token) for text, row in zip(lowered, words, strict=True)
        ]

    def encode(self, token_embeds: Tensor, lengths: Tensor, num_shared: int = 0) -> Tensor:
        """Pad token embeddings to the full length, run them through the tower and read it at the last position.

        Args:
            token_embeds: `[N, T, W]`, without positions; what stands after the end token is replaced by padding.
            lengths: `[N]` number of tokens up to and with the end token.
            num_shared: Not used: in both directions a common beginning is no longer common after the first block.

        Returns:
            Text embeddings `[N, D]`.
        """
        text = self.text_model
        hidden_states = text.embeddings(inputs_embeds=self.pad(token_embeds, lengths))
        hidden_states = run_bidirectional_blocks(text.encoder.layers, hidden_states, self.execution)
        embeds: Tensor = text.head(text.final_layer_norm(hidden_states[:, -1]))
        return embeds

    def pad(self, token_embeds: Tensor, lengths: Tensor) -> Tensor:
        """Token embeddings `[N, T, W]` at the full length `[N, context_length, W]`, padded as the tokenizer pads."""
        place = torch.arange(self.context_length, device=token_embeds.device).expand(len(token_embeds), -1)
        if self.tokenizer.padding_side == "left":
            place = place - (self.context_length - lengths).unsqueeze(1)
        inside = ((place >= 0) & (place < lengths.unsqueeze(1))).unsqueeze(-1)
        index = place.clamp(0, token_embeds.shape[1] - 1).unsqueeze(-1).expand(-1, -1, token_embeds.shape[2])
        padding = self.token_embedding.weight[self.tokenizer.pad_token_id].to(token_embeds.dtype)
        return torch.where(inside, token_embeds.gather(1, index), padding)


def token_spans(text: str, pieces: Sequence[str | None], unknown: str | None = None) -> list[tuple[int, int]]:
    """Where sentencepiece tokens stand in a text, for a tokenizer that does not tell.

    Each piece's characters are looked for in order; what the tokenizer left out (punctuation, blanks) is passed over.

    Args:
        text: What was tokenised.
        pieces: Its tokens; `None` for one that stands for no characters.
        unknown: The token that stands for characters that no piece has.

    Returns:
        For each token begin and end; `(0, 0)` for `None`.

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
            if found < 0:  # the tokenizer wrote this character otherwise
                continue
            begin, end = (found if position == 0 else begin), found + 1
        spans.append((begin, end))
        cursor = end
    return spans


def _is_word(character: str) -> bool:
    return character not in string.punctuation and not character.isspace()


def _lower(text: str) -> str:
    """Lower case, as long as it was: spans are those of the text itself."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
