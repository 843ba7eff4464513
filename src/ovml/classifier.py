"""OVMultiLabelClassifier: the LightningModule that wires the parts together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor, nn

from ovml.distillation import Distillation, FeatureL1
from ovml.encoders import make_encoders
from ovml.encoders.checkpoints import DEFAULT, ImageSpec, load_clip, load_image_spec, load_tokenizer
from ovml.encoders.execution import Execution
from ovml.heads import CosineHead, Head, TwoStreamHead
from ovml.losses import Loss, RankingLoss
from ovml.metrics import OpenVocabularyEvaluation
from ovml.metrics.calibrators import Calibrator
from ovml.metrics.protocols import EvaluationProtocol
from ovml.prompts import ContextPrompt, PromptLearner, TemplatePrompt
from ovml.prompts.base import MKT_TEMPLATE
from ovml.saving.checkpoint import LearnedWeights, save_plain_hyperparameters
from ovml.saving.hub import HubMixin
from ovml.training.evaluating import EvaluationSteps
from ovml.training.learning import TrainingSteps
from ovml.training.stages import PromptStage, Stage, VisionStage
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase, SiglipModel

    from ovml.inference.tagger import LabelScore
    from ovml.utils.images import ImageLike


class OVMultiLabelClassifier(TrainingSteps, EvaluationSteps, LearnedWeights, HubMixin):
    """Open-vocabulary multi-label classifier: CLIP adapted by multi-modal knowledge transfer (He et al., AAAI 2023).

    Args:
        clip: Name of a CLIP or SigLIP checkpoint (`ovml-demo`, a folder, or a Hub name), or a `CLIPModel` or
            `SiglipModel` itself.
        labels: The vocabulary. A plain list counts as seen. May be left out if only other labels are scored.
        head: Scores image features against label embeddings. Default: `TwoStreamHead` with the paper's share of
            the patches (16 of 196).
        prompt: Turns label names into label embeddings. Default: `ContextPrompt`, MKT's.
        loss: Default: `RankingLoss`.
        distillation: Default: `FeatureL1`.
        distillation_weight: Factor of the distillation loss in stages that distil; 0 turns it off.
        stages: What `ovml fit` runs, one after the other. Default: `VisionStage`, then `PromptStage`.
        ks: The k of precision, recall and F1 at k; a protocol with fewer labels goes without.
        protocols: What an evaluation measures beside seen labels, ZSL and GZSL; see `ovml.metrics.protocols`.
        images: Which images an evaluation counts; see `OpenVocabularyEvaluation`. Published figures differ by it.
        calibrator: Fits what turns scores into probabilities at the end of each validation. Default: `PlattScaling`.
        tokenizer: Needed only where `clip` is a model.
        compile: Run the blocks of both towers through `torch.compile`; see docs/scaling.md.
        gradient_checkpointing: Compute the activations of learning blocks again in the backward pass instead of
            keeping them: less memory, one more forward pass through those blocks.
        attn_implementation: How the blocks compute attention, as in transformers: `sdpa` (its default), `eager`,
            `flash_attention_2`. In bfloat16 on a CPU `eager` is worth trying; see docs/scaling.md.

    Raises:
        UserError: The checkpoint cannot be loaded, the labels are no proper list, or there is no such attention.

    Example:
        >>> model = OVMultiLabelClassifier("ovml-demo", labels=["red circle", "blue star"])
        >>> from PIL import Image
        >>> (best,) = model.predict_labels(Image.new("RGB", (80, 80)), top_k=1)
        >>> best.label in model.vocabulary
        True
    """

    def __init__(
        self,
        clip: str | nn.Module = DEFAULT,
        labels: LabelVocabulary | dict[str, list[str]] | list[str] | None = None,
        head: Head | None = None,
        prompt: PromptLearner | None = None,
        loss: Loss | None = None,
        distillation: Distillation | None = None,
        distillation_weight: float = 1.0,
        stages: list[Stage] | None = None,
        ks: list[int] | None = None,
        protocols: list[EvaluationProtocol] | None = None,
        images: Literal["all", "labelled"] = "all",
        calibrator: Calibrator | None = None,
        tokenizer: Any = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = None if labels is None else LabelVocabulary.from_any(labels)
        self._seen_vocabulary = self.vocabulary and self.vocabulary.seen_only()
        # What concerns a machine rather than the model is not kept: a checkpoint serves on others.
        plain_labels = {} if self.vocabulary is None else {"labels": self.vocabulary.to_dict()}
        machine = ("compile", "gradient_checkpointing", "attn_implementation")
        save_plain_hyperparameters(self, ("labels", "tokenizer", *machine), plain_labels)
        model, tokenizer, self.image_spec = _load_parts(clip, tokenizer)
        if attn_implementation is not None:
            _set_attention(model, attn_implementation)
        model.requires_grad_(False)

        execution = Execution(compile, gradient_checkpointing)
        self.image_encoder, text_encoder = make_encoders(model, tokenizer, execution)
        head = head if head is not None else TwoStreamHead(max(1, round(self.image_encoder.num_patches * 16 / 196)))
        self.head = head.bind(text_encoder.embed_dim)
        self.prompt = (prompt if prompt is not None else ContextPrompt()).bind(text_encoder)
        self.loss = loss if loss is not None else RankingLoss()
        self.distillation = distillation if distillation is not None else FeatureL1()
        self.distillation_weight = distillation_weight
        self.stages = stages if stages is not None else [VisionStage(), PromptStage()]
        self.evaluation = OpenVocabularyEvaluation(protocols, (3, 5) if ks is None else ks, images, calibrator)
        if self.vocabulary is not None:
            self.evaluation.prepare(self.vocabulary)

        # The original end of the tower teaches the adapted one; all before it is frozen and serves both.
        self.num_tail_layers = max((stage.num_layers for stage in self.stages), default=0)
        self.teacher = copy.deepcopy(self.image_encoder.tail(self.num_tail_layers)).requires_grad_(False)
        for stage in self.stages:
            stage.prepare(self)
        self._label_embeds: dict[Any, Tensor] = {}
        self.strict_loading = False  # checkpoints hold what learned; on_load_checkpoint checks their keys
        self._learned_names = self._find_learned_names()
        if self.stages:
            self.start_stage(self.stages[0])

    @overload
    def predict_labels(  # type: ignore[overload-overlap]  # a path is a sequence of strings too
        self,
        images: ImageLike,
        labels: Sequence[str] | LabelVocabulary | None = None,
        top_k: int | None = 5,
        batch_size: int = 32,
        probabilities: bool = False,
    ) -> list[LabelScore]: ...

    @overload
    def predict_labels(
        self,
        images: Sequence[ImageLike],
        labels: Sequence[str] | LabelVocabulary | None = None,
        top_k: int | None = 5,
        batch_size: int = 32,
        probabilities: bool = False,
    ) -> list[list[LabelScore]]: ...

    def predict_labels(
        self,
        images: ImageLike | Sequence[ImageLike],
        labels: Sequence[str] | LabelVocabulary | None = None,
        top_k: int | None = 5,
        batch_size: int = 32,
        probabilities: bool = False,
    ) -> list[LabelScore] | list[list[LabelScore]]:
        """Rank labels for one image or a list of images.

        Args:
            images: PIL images, paths or arrays; one, or a list of them.
            labels: Any names, seen in training or not. Default: the model's vocabulary.
            top_k: How many labels to return per image; `None` for all.
            batch_size: Images run at once.
            probabilities: Give calibrated probabilities in the place of scores; see `ovml.Tagger`.

        Returns:
            For one image a list of `LabelScore(label, score)`, best first; for a list of images a list of such lists.

        Raises:
            UserError: An image cannot be read, the labels are no proper list, or the model was never calibrated.
        """
        from ovml.inference.tagger import Tagger

        tagger = Tagger(self, labels, top_k=top_k, batch_size=batch_size, probabilities=probabilities)
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            return [tags for _, tags in tagger.tag(images)]
        return next(tagger.tag([images]))[1]

    def score_images(
        self,
        images: Iterable[ImageLike],
        labels: Sequence[str] | LabelVocabulary | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Score images against labels as one matrix, to compute with; `predict_labels` ranks them.

        Args:
            images: PIL images, paths or arrays.
            labels: Any names, seen in training or not. Default: the model's vocabulary.
            batch_size: Images run at once.

        Returns:
            Scores `[N, L]` on the CPU, rows and columns in the order given.

        Raises:
            UserError: An image cannot be read, there is one instead of several, or the labels are no proper list.

        Example:
            >>> from PIL import Image
            >>> model = OVMultiLabelClassifier("ovml-demo")
            >>> model.score_images([Image.new("RGB", (80, 80))] * 2, ["red circle", "star", "fish"]).shape
            torch.Size([2, 3])
        """
        from ovml.inference.tagger import Tagger

        return Tagger(self, labels, batch_size=batch_size).score(images)

    def zero_shot(self) -> OVMultiLabelClassifier:
        """The original CLIP on the same labels: cosine similarity, the fixed template, nothing learned."""
        model = copy.deepcopy(self, {id(self._trainer): None})
        model.image_encoder.replace_tail(copy.deepcopy(self.teacher))
        model.head = CosineHead()
        model.calibration = None
        template = getattr(self.prompt, "template", MKT_TEMPLATE)
        model.prompt = TemplatePrompt(template).bind(model.prompt.text_encoder)
        return model


def _load_parts(
    clip: str | nn.Module, tokenizer: Any
) -> tuple[CLIPModel | SiglipModel, PreTrainedTokenizerBase, ImageSpec]:
    if isinstance(clip, str):
        return load_clip(clip), tokenizer or load_tokenizer(clip), load_image_spec(clip)
    if tokenizer is None:
        raise UserError("tokenizer: needed where clip is a CLIPModel; pass the tokenizer that belongs to it")
    model: Any = copy.deepcopy(clip)
    return model, tokenizer, ImageSpec.of_config(model.config)


def _set_attention(model: CLIPModel | SiglipModel, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.attn_implementation: {name!r} does not work here ({reason}); try sdpa or eager"
        ) from error
