"""The vision tower of a `CLIPModel` (`vision_model`, `visual_projection`), and what it gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ovml.encoders.execution import Execution, bidirectional_block
from ovml.encoders.image_processor import check_normalized
from ovml.encoders.sources.base import PatchSource
from ovml.utils.errors import UserError
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
        self.vision_model = clip.vision_model
        self.image_size: int = clip.config.vision_config.image_size
        self.num_patches: int = clip.vision_model.embeddings.num_patches
        self._set_projection(getattr(clip, "visual_projection", None))
        self._set_source(patch_source)

    def _set_source(self, patch_source: PatchSource | None) -> None:
        if patch_source is not None and self.model_type != "clip":
            raise UserError("patch_source: reads the class token of a CLIP, which SigLIP has not; leave it out")
        self.patch_source = patch_source
        self.read_layers = 0 if patch_source is None else self.num_layers - patch_source.first_block(self.num_layers)
        """Number of last blocks that the patches are made of, beside the output of the last."""

    def with_source(self, patch_source: PatchSource | None) -> ImageEncoder:
        """The same tower, whose modules are shared, with patches of another source.

        Raises:
            UserError: The source does not fit the tower.
        """
        other = copy.copy(self)
        other._set_source(patch_source)
        return other

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
        check_normalized(pixel_values)
        hidden_states: Tensor = self.vision_model.pre_layrnorm(self.vision_model.embeddings(pixel_values))
        return hidden_states

    def forward(self, pixel_values: Tensor) -> Features:
        """Encode normalised images `[B, 3, H, W]`."""
        features: Features = self.tail(self.read_layers)(self.trunk(pixel_values, self.read_layers))
        return features
