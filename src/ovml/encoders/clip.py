"""The towers of a `CLIPModel` (`vision_model`, `visual_projection`, `text_model`, `text_projection`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ovml.encoders.execution import Execution, bidirectional_block, causal_block, deep_causal_block, is_whole
from ovml.encoders.prefix import deep_packed_block, pack, packed_block, shared_length, unpack
from ovml.encoders.sources.base import PatchSource
from ovml.utils.errors import UserError, beginning
from ovml.utils.tensors import full_precision


class ImageFeatures(NamedTuple):
    """Output of the vision tower for a batch of images. Neither embedding is L2-normalised.

    Attributes:
        global_embeds: Global image embeddings `[B, D]`: CLIP's class token, or SigLIP's attention-pooled token.
        patch_embeds: Patch embeddings `[B, P, D]`, in row-major order over the image.

    Example:
        >>> features = ImageFeatures(torch.randn(2, 8), torch.randn(2, 4, 8))
        >>> features.patch_embeds.shape
        torch.Size([2, 4, 8])
    """

    global_embeds: Tensor
    patch_embeds: Tensor

    def for_labels(self, label_embeds: Tensor) -> ImageFeatures:
        """The features for scoring labels `[L, D]`: the same for any; see `LabelDependentFeatures`."""
        return self


class LabelDependentFeatures(NamedTuple):
    """Output of a vision tower whose patch embeddings depend on the labels that are scored, as RAM's do.

    Attributes:
        global_embeds: Global image embeddings `[B, D]`, the same for any labels.
        finish: Turns label embeddings `[L, D]` into the features of the images for scoring these labels.

    Example:
        >>> embeds = torch.randn(2, 8)
        >>> features = LabelDependentFeatures(embeds, lambda labels: ImageFeatures(embeds, labels.expand(2, -1, -1)))
        >>> features.for_labels(torch.randn(5, 8)).patch_embeds.shape
        torch.Size([2, 5, 8])
    """

    global_embeds: Tensor
    finish: Callable[[Tensor], ImageFeatures]

    def for_labels(self, label_embeds: Tensor) -> ImageFeatures:
        """The features for scoring the labels `[L, D]` together."""
        return self.finish(label_embeds)


Features = ImageFeatures | LabelDependentFeatures
"""What a vision tower gives; `for_labels` finishes it where features and labels meet."""


def widened(features: ImageFeatures, dtype: torch.dtype = torch.float32) -> ImageFeatures:
    """The features in a type that holds both their own values and those of `dtype`."""
    return ImageFeatures(*(full_precision(tensor, dtype) for tensor in features))


class ImageTail(nn.Module):
    """The end of a vision tower: its last blocks, the layer norm and the projection.

    Args:
        layers: Transformer blocks.
        post_layernorm: Applied to all tokens; Hugging Face's `CLIPVisionModel` applies it to the class token only.
        visual_projection: Linear map `[W] -> [D]`.
        execution: How the blocks run.
        local_path: Turns the last hidden states, of any length, and label embeddings into hidden states
            `[B, 1+P, W]`; see `ovml.encoders.adapters.RAMLadder`.
        patch_source: Makes the patches of what the blocks computed. Default: the output of the last block.
        before: Number of the tower's blocks before these.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip
        >>> encoder = ImageEncoder(load_clip("ovml-demo"))
        >>> pixels = torch.zeros(1, 3, encoder.image_size, encoder.image_size)
        >>> in_two, whole = encoder.tail(2)(encoder.trunk(pixels, 2)), encoder(pixels)
        >>> in_two.patch_embeds.allclose(whole.patch_embeds, atol=1e-5)
        True
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        post_layernorm: nn.Module,
        visual_projection: nn.Module,
        execution: Execution | None = None,
        local_path: nn.Module | None = None,
        patch_source: PatchSource | None = None,
        before: int = 0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.post_layernorm = post_layernorm
        self.visual_projection = visual_projection
        self.execution = execution or Execution()
        self.local_path = local_path
        self.patch_source = patch_source
        self.before = before

    def forward(self, hidden_states: Tensor) -> Features:
        """Run hidden states `[B, 1+P, W]` through the blocks and project them to embeddings."""
        if self.patch_source is not None:
            return self._embed(self._with_other_patches(self.patch_source, hidden_states))
        hidden_states = self.execution.run(bidirectional_block, self.layers, hidden_states)
        if (local_path := self.local_path) is None:
            return self._embed(hidden_states)
        return LabelDependentFeatures(
            self._embed(hidden_states[:, :1]).global_embeds,
            lambda label_embeds: self._embed(local_path(hidden_states, label_embeds)),
        )

    def _with_other_patches(self, source: PatchSource, hidden_states: Tensor) -> Tensor:
        """The last hidden states, with the patches of a source."""
        states = [hidden_states]
        for layer in self.layers:
            states.append(self.execution.run(bidirectional_block, [layer], states[-1]))
        earlier: list[Any] = [None] * self.before
        patches = source.patches([*earlier, *states], [*earlier, *self.layers])
        return torch.cat([states[-1][:, :1], patches], dim=1)

    def _embed(self, hidden_states: Tensor) -> ImageFeatures:
        return self.pool(self.post_layernorm(hidden_states))

    def pool(self, tokens: Tensor) -> ImageFeatures:
        """Project the last, normalised hidden states `[B, 1+P, W]` to embeddings."""
        embeds = self.visual_projection(tokens)
        return ImageFeatures(embeds[:, 0], embeds[:, 1:])


class ImageEncoder(nn.Module):
    """Vision tower of CLIP with the projection applied to every token (MKT; He et al., AAAI 2023, arXiv 2207.01887).

    Args:
        clip: The `CLIPModel` whose vision tower is used. Its modules are shared, not copied.
        execution: How the blocks run.
        patch_source: See `ImageTail`.

    Raises:
        UserError: The source does not fit the tower.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip
        >>> encoder = ImageEncoder(load_clip("ovml-demo"))
        >>> features = encoder(torch.zeros(2, 3, encoder.image_size, encoder.image_size))
        >>> features.global_embeds.shape[0], features.patch_embeds.shape[1] == encoder.num_patches
        (2, True)
    """

    model_type: ClassVar[str] = "clip"
    tail_class: ClassVar[type[ImageTail]] = ImageTail
    visual_projection: nn.Module
    local_path: nn.Module | None
    """See `ImageTail`; adapters may set it."""

    def __init__(self, clip: Any, execution: Execution | None = None, patch_source: PatchSource | None = None) -> None:
        super().__init__()
        self.execution = execution or Execution()
        self.local_path = None
        self.patch_source = patch_source
        self.vision_model = clip.vision_model
        self.image_size: int = clip.config.vision_config.image_size
        self.num_patches: int = clip.vision_model.embeddings.num_patches
        self._set_projection(getattr(clip, "visual_projection", None))
        if patch_source is not None and self.model_type != "clip":
            raise UserError("patch_source: reads the class token of a CLIP, which SigLIP has not; leave it out")
        self.read_layers = 0 if patch_source is None else self.num_layers - patch_source.first_block(self.num_layers)
        """Number of last blocks that the patches are made of, beside the output of the last."""

    def _set_projection(self, projection: Any) -> None:
        self.visual_projection = projection

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.vision_model.encoder.layers)

    def tail(self, num_layers: int) -> ImageTail:
        """Return the last `num_layers` blocks, the layer norm and the projection (shared, not copied).

        Args:
            num_layers: At least `read_layers`, if the result is to run.

        Raises:
            UserError: The tower has fewer blocks than `num_layers`.
        """
        if not 0 <= num_layers <= self.num_layers:
            raise UserError(f"num_layers must be from 0 to {self.num_layers}, the tower's blocks; got {num_layers}")
        layers = self.vision_model.encoder.layers[self.num_layers - num_layers :]
        ends = (self.vision_model.post_layernorm, self.visual_projection, self.execution, self.local_path)
        return self.tail_class(layers, *ends, self.patch_source, self.num_layers - num_layers)

    def replace_tail(self, tail: ImageTail) -> None:
        """Replace the last blocks and all that follows them by those of `tail`."""
        layers = self.vision_model.encoder.layers
        for position, layer in enumerate(tail.layers, start=self.num_layers - len(tail.layers)):
            layers[position] = layer
        self.vision_model.post_layernorm = tail.post_layernorm
        self._set_projection(tail.visual_projection)
        self.local_path = tail.local_path

    def trunk(self, pixel_values: Tensor, num_tail_layers: int) -> Tensor:
        """Run all but the last `num_tail_layers` blocks; returns hidden states `[B, 1+P, W]`.

        Args:
            pixel_values: Normalised images `[B, 3, H, W]`.
            num_tail_layers: Number of blocks left for `tail(num_tail_layers)`.
        """
        layers = self.vision_model.encoder.layers[: self.num_layers - num_tail_layers]
        return self.execution.run(bidirectional_block, layers, self.embed_patches(pixel_values))

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Return the hidden states `[B, 1+P, W]` that enter the first block."""
        hidden_states: Tensor = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixel_values))
        return hidden_states

    def forward(self, pixel_values: Tensor) -> Features:
        """Encode normalised images `[B, 3, H, W]`."""
        features: Features = self.tail(self.read_layers)(self.trunk(pixel_values, self.read_layers))
        return features


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
