"""The text tower of a `CLIPModel` (`text_model`, `text_projection`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ovml.encoders.execution import Execution, causal_block, deep_causal_block, is_whole
from ovml.encoders.prefix import deep_packed_block, pack, packed_block, shared_length, unpack
from ovml.utils.errors import UserError, beginning


class TextEncoder(nn.Module):
    """Text tower of CLIP: embeds strings or token embeddings as `[L, D]`, not L2-normalised.

    The tower is causal and read at the end token, so tokens after it have no effect. Two shortcuts follow, and neither
    changes the result. Texts run in batches of similar length, padded to the longest text of the batch instead of the
    context length. Tokens that all texts of a batch start with ("a photo of a") are computed once.

    Args:
        clip: The `CLIPModel` whose text tower is used. Its modules are shared, not copied.
        tokenizer: The checkpoint's tokenizer; a fast one, because character offsets are needed.
        batch_size: Number of texts per batch.
        execution: How the blocks run.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> encoder = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
        >>> encoder(["a red circle", "a star"]).shape == (2, encoder.embed_dim)
        True
    """

    def __init__(
        self,
        clip: Any,
        tokenizer: Any,
        batch_size: int = 256,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self.execution = execution or Execution()
        self.text_model = clip.text_model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.embed_dim = self._take_projection(clip)

    def _take_projection(self, clip: Any) -> int:
        self.text_projection = clip.text_projection
        return int(clip.config.projection_dim)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The token table `[V, W]`."""
        table: nn.Embedding = self.text_model.embeddings.token_embedding
        return table

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text, including start and end token."""
        return int(self.text_model.embeddings.position_embedding.num_embeddings)

    def tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Return the unpadded token ids of each text, with start and end token, and each token's character span.

        Raises:
            UserError: A text has more tokens than the tower has positions.
        """
        encoded = self.tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
        self._check_tokens(texts, encoded["input_ids"])
        return encoded["input_ids"], encoded["offset_mapping"]

    def _check_tokens(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        known = self.token_embedding.num_embeddings
        for text, ids in zip(texts, rows, strict=True):
            if not ids or min(ids) < 0 or max(ids) >= known:
                raise UserError(
                    f"tokenizer: {beginning(text)!r} has tokens {list(ids)[:20]}, the text tower has those from 0 to "
                    f"{known - 1}; take the tokenizer that belongs to the checkpoint"
                )
            if len(ids) > self.context_length:
                raise UserError(
                    f"label too long: {beginning(text)!r} is {len(ids)} tokens, the text tower takes "
                    f"{self.context_length}; shorten it"
                )

    def forward(self, texts: Sequence[str], deep_tokens: Mapping[int, Tensor] | None = None) -> Tensor:
        """Embed texts; returns `[L, D]`. For `deep_tokens` see `encode`."""
        ids, _ = self.tokenize(texts)
        embeds = []
        batches = length_batches([len(row) for row in ids], self.batch_size)
        for batch in batches:
            tokens = pad_rows([ids[i] for i in batch]).to(self.token_embedding.weight.device)
            lengths = torch.tensor([len(ids[i]) for i in batch], device=tokens.device)
            num_shared = shared_length([ids[i] for i in batch])
            embeds.append(self.encode(self.token_embedding(tokens), lengths, num_shared, deep_tokens))
        return restore_order(embeds, batches)

    def encode(
        self,
        token_embeds: Tensor,
        lengths: Tensor,
        num_shared: int = 0,
        deep_tokens: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Run token embeddings through the tower and read the output at the end token.

        Args:
            token_embeds: `[N, T, W]`, without position embeddings; tokens after the end token are ignored.
            lengths: `[N]`, number of tokens up to and including the end token.
            num_shared: Number of leading tokens that are the same in all rows; less than the shortest length.
            deep_tokens: Tokens `[m, W]` by the number of a block, from 0: the block reads them behind the start token,
                and they are taken out after it. The tower's context length stays: what they push beyond it skips the
                block.

        Returns:
            Text embeddings `[N, D]`.
        """
        text, deep_tokens = self.text_model, deep_tokens or {}
        hidden_states, layers, most = (
            text.embeddings(inputs_embeds=token_embeds),
            text.encoder.layers,
            self.context_length,
        )
        longest = hidden_states.shape[1] + max(map(len, deep_tokens.values()), default=0)
        run = self.execution.run
        if num_shared and len(hidden_states) > 1 and longest <= most and not is_whole(layers[0]):
            packed, sizes = pack(hidden_states, num_shared), (num_shared, len(hidden_states))
            for i, layer in enumerate(layers):
                if i in deep_tokens:
                    packed = run(deep_packed_block, [layer], packed, *sizes, deep_tokens[i])
                else:
                    packed = run(packed_block, [layer], packed, *sizes)
            hidden_states, lengths = unpack(packed, *sizes), lengths - num_shared
        else:
            mask = self._causal_mask(hidden_states)
            for i, layer in enumerate(layers):
                if i in deep_tokens:
                    width = min(most, hidden_states.shape[1] + len(deep_tokens[i]))
                    deep_mask = self._causal_mask(hidden_states[:, :1].expand(-1, width, -1))
                    hidden_states = run(deep_causal_block, [layer], hidden_states, deep_mask, deep_tokens[i], most)
                else:
                    hidden_states = run(causal_block, [layer], hidden_states, mask)
        end_token = hidden_states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        embeds: Tensor = self.text_projection(text.final_layer_norm(end_token))
        return embeds

    def _causal_mask(self, hidden_states: Tensor) -> Tensor | None:
        """The mask of a block for `[N, T, W]`: `None` for SDPA, which masks by itself.

        It is made outside the compiled blocks, where it would never be `None`.
        """
        from transformers.masking_utils import create_causal_mask

        mask: Tensor | None = create_causal_mask(
            config=self.text_model.config, inputs_embeds=hidden_states, attention_mask=None, past_key_values=None
        )
        return mask


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group positions into batches of similar length, shortest first.

    >>> length_batches([3, 9, 4], 2)
    [[0, 2], [1]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad_rows(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Stack rows of unequal length into `[N, T]`, padded with `value` at the end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def restore_order(embeds: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> Tensor:
    """Undo `length_batches`: concatenate `embeds` (one tensor per batch) in the original order of the rows."""
    order = torch.tensor([i for batch in batches for i in batch], device=embeds[0].device)
    return torch.cat(list(embeds))[torch.argsort(order)]
