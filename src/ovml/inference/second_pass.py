"""TagCLIP's scores: patches refined by the tower's attention, then a second look at the regions of the best labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.encoders.execution import bidirectional_block
from ovml.encoders.sources import MaskCLIP
from ovml.heads.refinement import from_0_to_1, patch_attention, refined
from ovml.inference.whole_image import WholeImage, embed_patches
from ovml.model import Labels, OpenVocabularyModel
from ovml.prompts.several import distinct_texts
from ovml.prompts.texts import packaged_background
from ovml.utils.errors import UserError, check_share, check_whole
from ovml.utils.tensors import full_precision
from ovml.vocabulary import LabelVocabulary, check_names

REGIONS = 32
"""Regions that run through the tower at once."""
HIDDEN = -1000.0
"""What is added to the attention of the class token to patches outside the region."""
SAME = 1e-3
"""Largest distance between length-one embeddings of one text."""


class FirstPass(NamedTuple):
    """What the first pass through the tower gives.

    Attributes:
        pixel_values: The images `[B, 3, H, W]`.
        features: Those of the model's head.
        patches: Patch embeddings `[B, P, D]` that the labels' maps are made of.
        attention: How patches attend to one another `[B, P, P]`.
        grid: Rows and columns of the patches.
    """

    pixel_values: Tensor
    features: ImageFeatures
    patches: Tensor
    attention: Tensor
    grid: tuple[int, int]


class Regions(NamedTuple):
    """Regions of images in which labels are looked for again.

    Attributes:
        images: Place of each region's image in the batch, `[N]`.
        labels: Its label, `[N]`.
        pixel_values: The region's box, as large as the tower takes images, `[N, 3, S, S]`.
        marked: The patches that belong to the region, `[N, P]`.
    """

    images: Tensor
    labels: Tensor
    pixel_values: Tensor
    marked: Tensor


class SecondPass:
    """Scores images as TagCLIP's code does it (Lin et al., AAAI 2024, arXiv 2312.12828), without any training.

    1. Coarse: `P[p, c] = softmax_c(scale cos(x_p, t_c))` for labels and background names, of patches that keep their
       own values in the last block (`MaskCLIP`), or of the model's own patch source.
    2. Refined: `R`, each label's map smoothed by the attention of the tower, inside the boxes where the label is found;
       see `ovml.heads.refinement`. The label's first score is the highest of its map.
    3. A second look: a label scores again if its first score is above `min R + threshold (max R - min R)`. The box
       around its map's upper half runs through the tower, where the class token attends to the map's patches alone, and
       the label's score becomes the mean of the first one and of the softmax of this pass's cosines.

    It costs a pass through the tower and one more for each label that scores again, which `passes` counts, and the
    attention maps of all blocks. It has the two methods by which a `Tagger` scores: `encode_images` and `score`.

    Args:
        model: A CLIP with a class token. Its texts are those of its prompt: in TagCLIP's code an ensemble,
            `EnsemblePrompt("tagclip.txt")`.
        threshold: Which labels score again: 0.5, in TagCLIP's code 0.1 for the 171 labels of COCO-Stuff.
        background: Names that are no labels and take the patches that show none. Default: those of
            `packaged_background` that are no labels; `()` for none.
        blocks: Blocks whose attention is averaged; see `patch_attention`. In TagCLIP's code 9, 10 and 11 of 12, and 1
            to 11 for COCO-Stuff.
        votes: See `patch_attention`.
        first: What is scored first: `refined` for the highest of the refined map, `head` for the model's own head,
            which then has to give shares from 0 to 1, as `PatchSoftmaxHead` and `GaussianHead` do.

    Attributes:
        images: Images that were scored so far.
        regions: Regions that were run for them, each a pass through the tower.

    Raises:
        UserError: The tower has no class token or changed blocks, an argument is out of range, or (when images are
            scored) a background name is one of the labels, or the head's scores are no shares.

    Example:
        >>> from PIL import Image
        >>> model = OpenVocabularyModel("ovml-demo", ["red circle", "blue star", "moon"])
        >>> second = SecondPass(model, background=["sky", "wall"])
        >>> pixels = second.transform(Image.effect_noise((150, 110), 60).convert("RGB"))
        >>> pixels.shape, second(pixels[None]).shape, second(pixels[None], ["any", "label"]).shape
        (torch.Size([3, 112, 160]), torch.Size([1, 3]), torch.Size([1, 2]))
        >>> second.images, second.passes >= 1
        (2, True)
    """

    def __init__(
        self,
        model: OpenVocabularyModel,
        threshold: float = 0.5,
        background: Sequence[str] | None = None,
        blocks: Sequence[int] | None = None,
        votes: int | None = None,
        first: Literal["refined", "head"] = "refined",
    ) -> None:
        check_share(self, threshold=threshold)
        check_whole(self, 1, votes=votes)
        encoder = model.image_encoder
        if (
            encoder.model_type != "clip"
            or encoder.local_path is not None
            or any(a.wraps_blocks for a in model.adapters)
        ):
            raise UserError("SecondPass: needs a CLIP with a class token and its own blocks; take a plain CLIP")
        if "flash" in str(encoder.vision_model.config._attn_implementation):
            raise UserError("SecondPass: masks patches, which flash attention cannot; take attn_implementation='sdpa'")
        if model.head.takes_pairs:
            raise UserError(f"SecondPass: takes single label embeddings, {type(model.head).__name__} takes pairs")
        if blocks is not None and not (blocks and 1 <= min(blocks) <= max(blocks) <= encoder.num_layers):
            raise UserError(f"SecondPass: blocks must be from 1 to {encoder.num_layers}; got {list(blocks)}")
        if first not in ("refined", "head"):
            raise UserError(f"SecondPass: first is 'refined' or 'head'; got {first!r}")
        self.model = model
        self.threshold = threshold
        self.background = (
            background if background is None else check_names(background, "background") if background else ()
        )
        self.blocks = blocks
        self.votes = votes
        self.first = first
        self.source = encoder.patch_source or MaskCLIP()
        self.images = self.regions = 0

    def __repr__(self) -> str:
        own = ("threshold", "background", "blocks", "votes", "first")
        return f"SecondPass({', '.join(f'{name}={getattr(self, name)!r}' for name in own)})"

    @property
    def passes(self) -> float:
        """Passes through the tower for an image, on average over those that were scored so far."""
        return 1 + self.regions / max(1, self.images)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.image_encoder.vision_model.config.patch_size)

    @property
    def transform(self) -> WholeImage:
        """Makes pixel values of images as TagCLIP's code does it: of the whole image, at its own size."""
        return WholeImage(self.model.image_processor, self.patch_size)

    def __call__(self, pixel_values: Tensor, labels: Labels = None) -> Tensor:
        """Score normalised images `[B, 3, H, W]` against labels (default: the vocabulary); scores `[B, L]` from 0 to 1.

        Sides may be any multiples of a patch's.
        """
        return self.score(self.encode_images(pixel_values), self.model.embed_labels(labels))

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> FirstPass:
        """Run images `[B, 3, H, W]`, bytes or normalised, through the tower; keep what the second pass needs."""
        pixel_values = self.model.normalized(pixel_values).to(self.model.dtype)
        encoder = self.model.image_encoder
        layers = list(encoder.vision_model.encoder.layers)
        hidden_states, grid = embed_patches(encoder, pixel_values)
        states = [hidden_states]
        for layer in layers:
            states.append(encoder.execution.run(bidirectional_block, [layer], states[-1]))
        whole, patches = self._embed(states[-1]), self._embed(self.source.patches(states, layers))
        of_head = whole[:, 1:] if encoder.patch_source is None else patches
        attention = patch_attention(states, layers, self.blocks, self.votes)
        return FirstPass(pixel_values, ImageFeatures(whole[:, 0], of_head), patches, attention, grid)

    @torch.no_grad()
    def score(self, first: FirstPass, label_embeds: Tensor) -> Tensor:
        """Scores `[B, L]` of labels `[L, D]`, or of the best of several texts `[L, K, D]`, from 0 to 1."""
        if label_embeds.dim() == 3:
            texts, places = distinct_texts(label_embeds)
            return self.score(first, texts)[:, places].amax(dim=-1)
        background = self._background_embeds(label_embeds)
        return self.score_names(first, torch.cat([label_embeds, background.to(label_embeds)]), len(label_embeds))

    @torch.no_grad()
    def score_names(self, first: FirstPass, name_embeds: Tensor, num_labels: int) -> Tensor:
        """Scores `[B, L]` of the first `num_labels` of names `[C, D]`; the others are background names."""
        names = F.normalize(full_precision(name_embeds), dim=-1)
        maps = self.maps(first, names)
        best = maps[..., :num_labels].amax(dim=1)
        scores = best.clone() if self.first == "refined" else self._head_scores(first, name_embeds[:num_labels])
        regions = self.find_regions(first, maps, best)
        self.images += len(scores)
        self.regions += len(regions.images)
        for images, labels, pixels, marked in zip(*(part.split(REGIONS) for part in regions), strict=True):
            if len(images):
                shares = self._shares(self._class_tokens(pixels, marked), names)
                scores[images, labels] = (scores[images, labels] + shares.gather(1, labels[:, None])[:, 0]) / 2
        return scores

    def tags(self, scores: Tensor) -> Tensor:
        """Which labels TagCLIP's code gives to an image, `[B, L]`: those above `threshold`, relative to its scores.

        The best label is always given.
        """
        least, most = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
        return (scores > least + self.threshold * (most - least)) | (scores == most)

    def maps(self, first: FirstPass, names: Tensor) -> Tensor:
        """The refined maps `[B, P, C]` of length-one name embeddings `[C, D]`."""
        return refined(self._shares(first.patches, names), first.attention, first.grid)[1]

    def find_regions(self, first: FirstPass, maps: Tensor, scores: Tensor) -> Regions:
        """The regions of the labels that score again, in the order of images and labels.

        Args:
            first: The first pass.
            maps: Of all names, `[B, P, C]`.
            scores: First scores of the labels, `[B, L]`.
        """
        least, most = maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))
        again = (scores > (least + self.threshold * (most - least)).unsqueeze(1)).nonzero()
        images, labels = again.unbind(dim=1)
        shown = (from_0_to_1(maps[images, :, labels].T.unsqueeze(0))[0] > 0.5).T.unflatten(1, first.grid)
        size, side = self.model.image_encoder.image_size, self.patch_size
        cut: list[tuple[int, Tensor, Tensor]] = []
        for number, (image, bits) in enumerate(zip(images.tolist(), shown, strict=True)):
            rows, columns = (_span(bits.any(dim=axis)) for axis in (1, 0))
            if rows is None or columns is None:  # only in the last row or column, which the published code leaves out
                continue
            y, x = slice(*(side * end for end in rows)), slice(*(side * end for end in columns))
            box = first.pixel_values[image : image + 1, :, y, x]
            inside = bits[slice(*rows), slice(*columns)][None, None].float()
            cut.append(
                (
                    number,
                    F.interpolate(box, (size, size), mode="bilinear", align_corners=False),
                    F.interpolate(inside, (size // side, size // side), mode="nearest").flatten(1) > 0,
                )
            )
        if not cut:
            pixels = first.pixel_values.new_empty(0, 3, size, size)
            return Regions(images[:0], labels[:0], pixels, shown.new_empty(0, (size // side) ** 2))
        kept = torch.tensor([number for number, _, _ in cut], device=images.device)
        pixels, marked = (torch.cat([parts[i] for parts in cut]) for i in (1, 2))  # type: ignore[misc]
        return Regions(images[kept], labels[kept], pixels, marked)

    def _class_tokens(self, pixel_values: Tensor, marked: Tensor) -> Tensor:
        """Global embeddings `[N, D]` of images whose class token attends to itself and to marked patches `[N, P]`."""
        encoder = self.model.image_encoder
        hidden_states, _ = embed_patches(encoder, pixel_values)
        length = hidden_states.shape[1]
        mask = hidden_states.new_zeros(len(marked), 1, length, length)
        mask[:, 0, 0, 1:].masked_fill_(~marked, HIDDEN)
        hidden_states = encoder.execution.run(masked_block, encoder.vision_model.encoder.layers, hidden_states, mask)
        return self._embed(hidden_states[:, :1])[:, 0]

    def _shares(self, embeds: Tensor, names: Tensor) -> Tensor:
        cosines = F.normalize(full_precision(embeds), dim=-1) @ names.T
        return (float(self.model.logit_scale.exp()) * cosines).softmax(dim=-1)

    def _head_scores(self, first: FirstPass, label_embeds: Tensor) -> Tensor:
        scores = self.model.score(first.features, label_embeds)
        if scores.numel() and not 0 <= float(scores.min()) <= float(scores.max()) <= 1 + 1e-4:
            raise UserError(
                f"SecondPass: first='head' takes scores from 0 to 1, as of PatchSoftmaxHead or GaussianHead; "
                f"{type(self.model.head).__name__} gives others"
            )
        return scores

    def _background_embeds(self, label_embeds: Tensor) -> Tensor:
        names = packaged_background() if self.background is None else self.background
        if not names:
            return label_embeds[:0]
        embeds = self.model.embed_names(LabelVocabulary(tuple(names)))
        embeds = embeds if embeds.dim() == 2 else embeds[:, 0]
        ours, labels = (F.normalize(full_precision(x), dim=-1) for x in (embeds.to(label_embeds), label_embeds))
        twice = torch.stack([(labels - own).norm(dim=-1).amin() < SAME for own in ours])
        if self.background is not None and twice.any():
            raise UserError(f"background: {names[int(twice.int().argmax())]!r} is one of the labels; leave it out")
        return embeds[~twice]

    def _embed(self, hidden_states: Tensor) -> Tensor:
        """Embeddings `[B, T, D]` of the last hidden states."""
        embeds: Tensor = self.model.image_encoder.visual_projection(
            self.model.image_encoder.vision_model.post_layernorm(hidden_states)
        )
        return embeds


def masked_block(layer: nn.Module, hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Run a block of a vision tower on `[N, T, W]` with a mask `[N, 1, T, T]` that is added to its attention."""
    out: Tensor = layer(hidden_states, mask)
    return out


def _span(used: Tensor) -> tuple[int, int] | None:
    """First place that is used and the last one, exclusive, never the end of the side; `None` if that is nothing."""
    places = used.nonzero().flatten()
    if not len(places):
        return None
    first, end = int(places[0]), min(int(places[-1]) + 1, len(used) - 1)
    return (first, end) if first < end else None
