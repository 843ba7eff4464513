"""OpenVocabularyModel: images and label names in, scores out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ovml.encoders import Features, ImageFeatures, make_encoders, widened
from ovml.encoders.adapters import TowerAdapter
from ovml.encoders.checkpoints import DEFAULT, load_clip, load_image_processor, load_tokenizer
from ovml.encoders.execution import Execution
from ovml.encoders.image_processor import ImageProcessor, Preprocessing
from ovml.encoders.sources import PatchSource
from ovml.heads import Head, TwoStreamHead
from ovml.heads.scoring import Scoring
from ovml.metrics.adapted import Adapted
from ovml.metrics.calibration import Calibration
from ovml.prompts import ContextPrompt, PromptLearner
from ovml.prompts.several import distinct_texts
from ovml.utils.errors import UserError, all_lines
from ovml.utils.parts import describe, warn_unless_importable
from ovml.utils.tensors import full_precision
from ovml.vocabulary import LabelVocabulary, label_key

Labels = Sequence[str] | LabelVocabulary | None
"""Any label names; `None` for the model's own vocabulary."""
LabelCache = Callable[[Callable[[], Tensor], PromptLearner, LabelVocabulary], Tensor]
"""Gives the embeddings that a prompt has for the labels of a vocabulary, perhaps without calling the first argument."""


class OpenVocabularyModel(nn.Module):
    """Scores images against any label names: a CLIP image tower, a prompt, a head.

    It is a plain torch module: tagging, explaining, exporting and serving need no more. `OVMultiLabelClassifier` trains
    one.

    Args:
        clip: Name of a CLIP or SigLIP checkpoint (`ovml-demo`, a folder, or a Hub name), or a `CLIPModel` or
            `SiglipModel` itself.
        labels: The vocabulary. A plain list counts as seen. It may be left out if only other labels are scored.
        head: Scores image features against label embeddings. Default: `TwoStreamHead` with the paper's share of the
            patches (16 of 196).
        prompt: Turns label names into label embeddings. Default: `ContextPrompt`, MKT's.
        adapters: Learned modules beside the blocks of the image tower.
        preprocessing: Settings that replace those of the checkpoint's image processor.
        patch_source: Makes the patches of a CLIP tower in another way; see `ovml.encoders.sources`.
        tokenizer: Needed only where `clip` is a model.
        compile: Run the blocks of both towers through `torch.compile`.
        gradient_checkpointing: Recompute the activations of trained blocks in the backward pass instead of keeping
            them.
        attn_implementation: How the blocks compute attention, as in transformers: `sdpa` (its default), `eager`,
            `flash_attention_2`.

    Attributes:
        image_encoder: The image tower.
        image_processor: How images become pixel values.
        logit_scale: Logarithm of the factor that the CLIP learned for its cosines; heads may take it.
        calibration: Turns logits into probabilities; `None` until a validation fits one.
        adapted: What images without labels it was fitted on; `None` until `ovml.inference.adapt` fits it.
        scoring: What a plain CLIP scores by; `None` for a model with a head of its own.
        clip_name: Name of the checkpoint with the frozen weights; `None` if `clip` was a model.
        label_cache: Keeps label embeddings beyond the process, such as `ovml.inference.label_cache.cached`; `None`
            keeps them in memory only.
        base_model: Hub name of the CLIP that a saved model was trained from, if it is known.

    Raises:
        UserError: The checkpoint cannot be loaded, the labels are not a proper list, or the attention is not available.

    Example:
        >>> model = OpenVocabularyModel("ovml-demo", labels=["red circle", "blue star"])
        >>> model(torch.zeros(1, 3, 96, 96)).shape, model(torch.zeros(1, 3, 96, 96), ["any", "label", "name"]).shape
        (torch.Size([1, 2]), torch.Size([1, 3]))
    """

    def __init__(
        self,
        clip: str | nn.Module = DEFAULT,
        labels: LabelVocabulary | dict[str, list[str]] | list[str] | None = None,
        head: Head | None = None,
        prompt: PromptLearner | None = None,
        adapters: Sequence[TowerAdapter] = (),
        preprocessing: Preprocessing | None = None,
        tokenizer: Any = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        patch_source: PatchSource | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = None if labels is None else LabelVocabulary.from_any(labels)
        self.clip_name = clip if isinstance(clip, str) else None
        self.base_model: str | None = None
        towers, tokenizer, processor = _load_checkpoint(clip, tokenizer)
        self.image_processor = processor if preprocessing is None else preprocessing.of(processor)
        if attn_implementation is not None:
            _set_attention(towers, attn_implementation)
        towers.requires_grad_(False)
        self.image_encoder, text_encoder = make_encoders(
            towers, tokenizer, Execution(compile, gradient_checkpointing), patch_source
        )
        self.embed_dim = text_encoder.embed_dim
        if self.image_encoder.model_type == "siglip" and not self.image_processor.squash:
            raise UserError("model.preprocessing.squash: SigLIP's image processor crops nothing; leave it out")
        head = head if head is not None else TwoStreamHead(max(1, round(self.image_encoder.num_patches * 16 / 196)))
        self.head = head.bind(self.embed_dim)
        self.logit_scale: Tensor = towers.logit_scale.detach().clone()
        self.head.set_logit_scale(float(self.logit_scale.exp()))
        self.prompt = (prompt if prompt is not None else ContextPrompt()).bind(text_encoder)
        check_pairs(self.head, self.prompt)
        warn_unless_importable(self.head, self.prompt)
        self.adapters: list[TowerAdapter] = []
        for adapter in adapters:
            self.add_adapter(adapter)
        self.calibration: Calibration | None = None
        self.label_cache: LabelCache | None = None
        self.adapted: Adapted | None = None
        self.scoring: Scoring | None = None
        self._label_embeds: dict[Any, Tensor] = {}

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a label's embedding: `[D]`, or `[2, D]` for a head that takes pairs."""
        return (2, self.embed_dim) if self.head.takes_pairs else (self.embed_dim,)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type that the image tower computes with."""
        return next(self.image_encoder.parameters()).dtype

    def set_precision(self, dtype: torch.dtype) -> OpenVocabularyModel:
        """Convert the towers and the prompt to a type that is faster, to use the model; returns the model itself.

        The head keeps its own, so scores stay float32. A model that learns needs float32 here, and mixed precision of
        its trainer.
        """
        self.image_encoder.to(dtype)
        self.prompt.to(dtype)
        return self

    def add_adapter(self, adapter: TowerAdapter) -> None:
        """Attach an adapter to the image tower, unless an equal one is attached already.

        Raises:
            UserError: The tower is too short, or of a kind that cannot be adapted.
        """
        if describe(adapter) not in map(describe, self.adapters):
            if self.image_encoder.patch_source is not None and adapter.wraps_blocks:
                raise UserError(
                    f"patch_source: reads blocks as they are, which {type(adapter).__name__} replaces; leave one of "
                    "both out"
                )
            adapter.attach(self.image_encoder, self.embed_dim)
            self.adapters.append(adapter)

    def normalized(self, pixel_values: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` as the tower takes them: bytes are normalized, floats are taken as normalized ones."""
        if pixel_values.dtype == torch.uint8:
            return self.image_processor.normalize_pixels(pixel_values)
        return pixel_values

    @property
    def looks_again(self) -> bool:
        """Whether a `Tagger` looks a second time at the labels that stand out; see `Scoring.second_pass`."""
        return self.scoring is not None and self.scoring.second_pass

    def scored_by(self, scoring: Scoring) -> OpenVocabularyModel:
        """This model with another head and source of patches; towers and prompt are shared.

        Raises:
            UserError: The head does not fit the prompt, or the source the tower.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)  # a copy of a module shares its modules' names too
        source = scoring.patch_source if self.image_encoder.model_type == "clip" else None
        other.image_encoder = self.image_encoder.with_source(source)
        other.head = copy.deepcopy(scoring.head).bind(self.embed_dim).to(self.device)
        other.head.set_logit_scale(float(self.logit_scale.exp()))
        other.scoring, other.calibration, other.adapted = scoring, None, None
        check_pairs(other.head, other.prompt)
        warn_unless_importable(other.head)
        return other

    def encode_images(self, pixel_values: Tensor) -> Features:
        """Features of images `[B, 3, H, W]`, bytes or normalized floats, on the model's device.

        `score` finishes them where they depend on the labels.
        """
        features: Features = self.image_encoder(self.normalized(pixel_values).to(self.dtype))
        return features

    def embed_labels(self, labels: Labels = None, prompt: PromptLearner | None = None) -> Tensor:
        """Label embeddings `[L, D]`, or pairs `[L, 2, D]`, without gradients; cached until the prompt changes.

        Args:
            labels: Default: the vocabulary.
            prompt: Replaces the model's own; it is bound to the text tower.

        Raises:
            UserError: A label is a background name of the head.
        """
        vocabulary = self.vocabulary_of(labels)
        if background := set(map(label_key, self.head.background)):
            both = next((name for name in vocabulary.names if label_key(name) in background), None)
            if both is not None:
                raise UserError(f"labels: {both!r} is a background name of the head too; leave out one of both")
        return self.embed_names(vocabulary, prompt)

    def embed_names(self, vocabulary: LabelVocabulary, prompt: PromptLearner | None = None) -> Tensor:
        """Embeddings of names that need not be labels, such as those of a background; see `embed_labels`."""
        prompt = self.prompt if prompt is None else prompt
        check_pairs(self.head, prompt)
        # The version of a parameter grows with every change in place (an optimizer step, a loaded state).
        weight = next(prompt.text_encoder.parameters())
        versions = tuple(p._version for p in prompt.parameters())
        key = (prompt, vocabulary, weight.device, weight.dtype, versions)
        if key not in self._label_embeds:
            # In full precision, so that the cached embeddings serve with and without mixed precision.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                embed = partial(prompt, vocabulary)
                embeds = embed() if self.label_cache is None else self.label_cache(embed, prompt, vocabulary)
            self._label_embeds = {**dict(list(self._label_embeds.items())[-7:]), key: embeds}
        return self._label_embeds[key]

    def forget_labels(self) -> None:
        """Drop cached label embeddings; the cache does not notice changes of a sharded prompt."""
        self._label_embeds.clear()

    def score(self, features: Features, label_embeds: Tensor) -> Tensor:
        """The head's logits `[B, L]`, in float32 also where the towers run in half precision.

        Of label embeddings `[L, K, D]`, of several texts, the best text's.
        """
        if label_embeds.dim() == 3 and not self.head.takes_pairs:
            texts, places = distinct_texts(label_embeds)
            return self.score(features, texts)[:, places].amax(dim=-1)
        features = widened(features.for_labels(label_embeds), self.head.dtype)
        num_labels, label_embeds = (
            len(label_embeds),
            full_precision(self.with_background(label_embeds), self.head.dtype),
        )
        with torch.autocast(label_embeds.device.type, enabled=False):
            return full_precision(self.head(features, label_embeds)[:, :num_labels])

    def scorer(self, features: Features, label_embeds: Tensor) -> Callable[[slice | list[int]], Tensor]:
        """Score images against several sets of labels, each set together as `score` does.

        What a head computes of each label by itself is computed once.

        Args:
            features: Of the images.
            label_embeds: Of all labels `[L, D]`.

        Returns:
            A function of the columns of a set, which returns its logits `[B, L']`.
        """
        several = label_embeds.dim() == 3 and not self.head.takes_pairs
        if several or not (self.head.is_divided and isinstance(features, ImageFeatures) and not self.head.background):
            return lambda columns: self.score(features, label_embeds[columns])
        features, label_embeds = widened(features, self.head.dtype), full_precision(label_embeds, self.head.dtype)
        with torch.autocast(label_embeds.device.type, enabled=False):
            scores = self.head.label_scores(features, label_embeds)

        def logits(columns: slice | list[int]) -> Tensor:
            with torch.autocast(label_embeds.device.type, enabled=False):
                return full_precision(self.head.combine(*(of_all[:, columns] for of_all in scores)))

        return logits

    def with_background(self, label_embeds: Tensor) -> Tensor:
        """Label embeddings `[L, D]`, and behind them those of the head's background names."""
        if not self.head.background:
            return label_embeds
        background = self.embed_names(LabelVocabulary(tuple(self.head.background)))
        background = background if background.dim() == 2 else background[:, 0]
        return torch.cat([label_embeds, background.to(label_embeds)])

    def forward(self, pixel_values: Tensor, labels: Labels = None) -> Tensor:
        """Score images `[B, 3, H, W]` against labels (default: the vocabulary); logits `[B, L]`.

        Args:
            pixel_values: Bytes, or normalized floats.
            labels: Label names.
        """
        label_embeds = self.embed_labels(labels)
        return self.score(self.encode_images(pixel_values), label_embeds)

    def vocabulary_of(self, labels: Labels) -> LabelVocabulary:
        """The vocabulary of label names; the model's own by default.

        Raises:
            UserError: There is none, or the names are not a proper list.
        """
        labels = self.vocabulary if labels is None else labels
        if labels is None:
            raise UserError(
                "labels: none given, and the model has no vocabulary; pass a list of label names, or the vocabulary "
                "of a data module"
            )
        return LabelVocabulary.from_any(labels)


def check_pairs(head: Head, prompt: PromptLearner) -> None:
    """Check that a prompt gives the label embeddings that a head takes, single or pairs.

    Raises:
        UserError: It does not.
    """
    if head.takes_pairs != prompt.gives_pairs:
        takes, gives = ("pairs of label embeddings", "single ones"), ("single label embeddings", "pairs")
        taken, given = takes if head.takes_pairs else gives
        advice = "take DualCoOpPrompt" if head.takes_pairs else "take DualCoOpHead, or DualPrompt"
        raise UserError(f"{type(head).__name__} takes {taken}, {type(prompt).__name__} gives {given}; {advice}")


def _load_checkpoint(clip: Any, tokenizer: Any) -> tuple[Any, Any, ImageProcessor]:
    if tokenizer is not None and not callable(tokenizer):
        raise UserError(f"tokenizer: must be a tokenizer of transformers, made in Python; got {tokenizer!r}")
    if isinstance(clip, str):
        model = load_clip(clip)
        return model, tokenizer or load_tokenizer(clip, model.config), load_image_processor(clip)
    if tokenizer is None:
        raise UserError("tokenizer: needed where clip is a CLIPModel; pass the tokenizer that belongs to it")
    model = copy.deepcopy(clip)
    if model.dtype.itemsize < 4:  # weights that learn need full precision; Lightning's and torch's choices come later
        model.float()
    return model, tokenizer, ImageProcessor.of_config(model.config)


def _set_attention(towers: Any, name: str) -> None:
    try:
        towers.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        reason = all_lines(error)[:200]
        raise UserError(
            f"model.attn_implementation: {name!r} does not work here ({reason}); try sdpa or eager"
        ) from error
