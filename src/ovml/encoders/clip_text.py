"""The text tower of a `CLIPModel` (`text_model`, `text_projection`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders.execution import Execution, causal_block, deep_causal_block, is_whole
from ovml.encoders.prefix import deep_packed_block, pack, packed_block, unpack, visible_tokens
from ovml.encoders.texts import TextBatch, TokenizedTexts, texts_per_batch
from ovml.utils.errors import UserError, beginning


class TextEncoder(nn.Module):
    """Text tower of CLIP: embeds strings or token embeddings as `[L, D]`, not L2-normalised.

    The tower is causal and read at the end token, so tokens after it have no effect. Two shortcuts follow, and neither
    changes the result. Texts run in batches of similar length, padded to the longest text of the batch instead of the
    context length. Tokens that all texts of a batch start with ("a photo of a") are computed once.

    Args:
        clip: The `CLIPModel` whose text tower is used. Its modules are shared, not copied.
        tokenizer: The checkpoint's tokenizer; a fast one, because character offsets are needed.
        batch_size: Number of texts per batch. Default: see `texts_per_batch`.
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
        batch_size: int | None = None,
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
        return self.embed(TokenizedTexts(self.tokenize(texts)[0]), deep_tokens=deep_tokens)

    def embed(
        self,
        texts: TokenizedTexts,
        vectors: Tensor | None = None,
        columns: Tensor | None = None,
        deep_tokens: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Embed tokenised texts; returns `[L, D]`.

        Args:
            texts: The texts.
            vectors: Learned vectors `[M, W]` that replace the embeddings of tokens, as the texts say.
            columns: Positions of the texts to embed, on the CPU. Default: all.
            deep_tokens: See `encode`.
        """
        table = self.token_embedding.weight
        size = self.batch_size or texts_per_batch(table.device, table.shape[1], self._run_length(texts.longest))
        found = texts.batches(table.device, size, columns)
        # Row 0 stands for no vector: it gets no gradient.
        padded = None if vectors is None else F.pad(vectors, (0, 0, 1, 0))
        return found.restore(
            [
                self.encode(self._token_embeds(batch, padded), batch.lengths, batch.num_shared, deep_tokens)
                for batch in found.batches
            ]
        )

    def _token_embeds(self, batch: TextBatch, padded: Tensor | None) -> Tensor:
        """Embeddings `[N, T, W]` of a batch's tokens: the table's, or those of `padded` where the batch says so."""
        own: Tensor = self.token_embedding(batch.ids)
        if padded is None or batch.rows is None:
            return own
        learned = F.embedding(batch.rows, padded, padding_idx=0).to(own.dtype)
        return torch.where((batch.rows > 0).unsqueeze(-1), learned, own)

    def _run_length(self, longest: int) -> int:
        """Number of tokens that a text of `longest` tokens runs with."""
        return longest

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
        text, deep_tokens, run = self.text_model, deep_tokens or {}, self.execution.run
        hidden_states, layers = text.embeddings(inputs_embeds=token_embeds), text.encoder.layers
        most, longest_tokens = self.context_length, max(map(len, deep_tokens.values()), default=0)
        fits = hidden_states.shape[1] + longest_tokens <= most
        if num_shared and len(hidden_states) > 1 and fits and not is_whole(layers[0]):
            packed, sizes = pack(hidden_states, num_shared), (num_shared, len(hidden_states))
            # One mask for all blocks that share as many tokens.
            added = {0, *map(len, deep_tokens.values())}
            masks = {number: visible_tokens(hidden_states, num_shared, number) for number in added}
            for i, layer in enumerate(layers):
                if i in deep_tokens:
                    packed = run(deep_packed_block, [layer], packed, *sizes, masks[len(deep_tokens[i])], deep_tokens[i])
                else:
                    packed = run(packed_block, [layer], packed, *sizes, masks[0])
            hidden_states, lengths = unpack(packed, *sizes), lengths - num_shared
        else:
            widths = {min(most, hidden_states.shape[1] + len(tokens)) for tokens in deep_tokens.values()}
            causal = {n: self._causal_mask(hidden_states, n) for n in {hidden_states.shape[1], *widths}}
            for i, layer in enumerate(layers):
                mask = causal[min(most, hidden_states.shape[1] + len(deep_tokens.get(i, ())))]
                if i in deep_tokens:
                    hidden_states = run(deep_causal_block, [layer], hidden_states, mask, deep_tokens[i], most)
                else:
                    hidden_states = run(causal_block, [layer], hidden_states, mask)
        end_token = hidden_states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        embeds: Tensor = self.text_projection(text.final_layer_norm(end_token))
        return embeds

    def _causal_mask(self, hidden_states: Tensor, width: int) -> Tensor | None:
        """The mask of a block for `[N, width, W]`: `None` for SDPA, which masks by itself.

        It is made outside the compiled blocks, where it would never be `None`.
        """
        from transformers.masking_utils import create_causal_mask

        embeds = hidden_states[:, :1].expand(-1, width, -1)  # its shape, type and device are read
        mask: Tensor | None = create_causal_mask(
            config=self.text_model.config, inputs_embeds=embeds, attention_mask=None, past_key_values=None
        )
        return mask
