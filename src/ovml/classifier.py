"""OVMultiLabelClassifier: the LightningModule that wires the parts together."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ovml.blocks import Execution, check_compiler
from ovml.checkpoints import DEFAULT, ImageSpec, load_clip, load_image_spec, load_tokenizer
from ovml.distillation import Distillation, FeatureL1
from ovml.encoders import ImageEncoder, ImageFeatures, TextEncoder
from ovml.errors import UserError
from ovml.heads import CosineHead, Head, TwoStreamHead
from ovml.hub import HubMixin
from ovml.learned import check_learned, read_checkpoint, save_plain_hyperparameters, signature
from ovml.losses import Loss, RankingLoss
from ovml.metrics import OpenVocabularyEvaluation
from ovml.optim import WarmupCosineLR
from ovml.processes import image_share, shard
from ovml.prompts import ContextPrompt, PromptLearner, TemplatePrompt
from ovml.prompts.base import MKT_TEMPLATE
from ovml.training import PromptStage, Stage, VisionStage
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

    from ovml.images import ImageLike
    from ovml.tagging import LabelScore


class OVMultiLabelClassifier(pl.LightningModule, HubMixin):
    """Open-vocabulary multi-label classifier: CLIP adapted by multi-modal knowledge transfer (He et al., AAAI 2023).

    Args:
        clip: Name of a CLIP checkpoint (`ovml-demo`, a folder, or a Hub name), or a `CLIPModel` itself.
        labels: The vocabulary. A plain list counts as seen. May be left out if only other labels are scored.
        head: Scores image features against label embeddings. Default: `TwoStreamHead` with the paper's share of
            the patches (16 of 196).
        prompt: Turns label names into label embeddings. Default: `ContextPrompt`, MKT's.
        loss: Default: `RankingLoss`.
        distillation: Default: `FeatureL1`.
        distillation_weight: Factor of the distillation loss in stages that distil; 0 turns it off.
        stages: What `ovml fit` runs, one after the other. Default: `VisionStage`, then `PromptStage`.
        ks: The k of precision, recall and F1 at k; those above the number of seen or unseen labels are left out.
        images: Which images an evaluation counts; see `OpenVocabularyEvaluation`. Published figures differ by it.
        tokenizer: Needed only where `clip` is a `CLIPModel`.
        compile: Run the blocks of both towers through `torch.compile`; see docs/scaling.md.
        gradient_checkpointing: Compute the activations of learning blocks again in the backward pass instead of
            keeping them: less memory, one more forward pass through those blocks.

    Raises:
        UserError: The checkpoint cannot be loaded, or the labels are no proper list.

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
        images: Literal["all", "labelled"] = "all",
        tokenizer: Any = None,
        compile: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary = None if labels is None else LabelVocabulary.from_any(labels)
        self._seen_vocabulary = self.vocabulary and self.vocabulary.seen_only()
        # What concerns a machine rather than the model is not kept: a checkpoint serves on others.
        plain_labels = {} if self.vocabulary is None else {"labels": self.vocabulary.to_dict()}
        save_plain_hyperparameters(self, ("labels", "tokenizer", "compile", "gradient_checkpointing"), plain_labels)
        model, tokenizer, self.image_spec = _load_parts(clip, tokenizer)
        model.requires_grad_(False)

        execution = Execution(compile, gradient_checkpointing)
        self.image_encoder = ImageEncoder(model, execution)
        text_encoder = TextEncoder(model, tokenizer, execution=execution)
        self.head = (
            head if head is not None else TwoStreamHead(max(1, round(self.image_encoder.num_patches * 16 / 196)))
        )
        self.prompt = (prompt if prompt is not None else ContextPrompt()).bind(text_encoder)
        self.loss = loss if loss is not None else RankingLoss()
        self.distillation = distillation if distillation is not None else FeatureL1()
        self.distillation_weight = distillation_weight
        self.stages = stages if stages is not None else [VisionStage(), PromptStage()]
        self.evaluation = OpenVocabularyEvaluation(_possible_ks((3, 5) if ks is None else ks, self.vocabulary), images)

        # The original end of the tower teaches the adapted one; all before it is frozen and serves both.
        self.num_tail_layers = max((stage.num_layers for stage in self.stages), default=0)
        self.teacher = copy.deepcopy(self.image_encoder.tail(self.num_tail_layers)).requires_grad_(False)
        self._label_embeds: dict[Any, Tensor] = {}
        self.strict_loading = False  # checkpoints hold what learned; on_load_checkpoint checks their keys
        self._learned_names = self._find_learned_names()
        if self.stages:
            self.start_stage(self.stages[0])

    # ------------------------------------------------------------------ inference

    def forward(self, pixel_values: Tensor, labels: Sequence[str] | LabelVocabulary | None = None) -> Tensor:
        """Score normalised images `[B, 3, H, W]` against labels (default: the vocabulary); logits `[B, L]`."""
        label_embeds = self.embed_labels(labels)
        return self._score(self.image_encoder(pixel_values), label_embeds)

    def _score(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        device = self.device.type
        if torch.is_autocast_enabled(device):
            # In half precision different scores would round to the same number, and their order be lost.
            features, label_embeds = ImageFeatures(*(f.float() for f in features)), label_embeds.float()
        with torch.autocast(device, enabled=False):
            logits: Tensor = self.head(features, label_embeds)
        return logits

    def embed_labels(self, labels: Sequence[str] | LabelVocabulary | None = None) -> Tensor:
        """Label embeddings `[L, D]`, without a graph; computed once and kept until the prompt changes."""
        vocabulary = self.vocabulary_of(labels)
        # A parameter's version grows with every change in place (an optimizer step, a loaded state).
        key = (vocabulary, self.device, tuple(p._version for p in self.prompt.parameters()))
        if key not in self._label_embeds:
            # In full precision: it is done once, and what is kept serves with and without mixed precision.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                embeds = self.prompt(vocabulary)
            self._label_embeds = {**dict(list(self._label_embeds.items())[-7:]), key: embeds}
        return self._label_embeds[key]

    def predict_labels(
        self,
        images: ImageLike | Sequence[ImageLike],
        labels: Sequence[str] | LabelVocabulary | None = None,
        top_k: int | None = 5,
        batch_size: int = 32,
    ) -> list[LabelScore] | list[list[LabelScore]]:
        """Rank labels for one image or a list of images.

        Args:
            images: PIL images, paths or arrays; one, or a list of them.
            labels: Any names, seen in training or not. Default: the model's vocabulary.
            top_k: How many labels to return per image; `None` for all.
            batch_size: Images run at once.

        Returns:
            For one image a list of `LabelScore(label, score)`, best first; for a list of images a list of such lists.

        Raises:
            UserError: An image cannot be read, or the labels are no proper list.
        """
        from ovml.tagging import Tagger

        tagger = Tagger(self, labels, top_k=top_k, batch_size=batch_size)
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            return [tags for _, tags in tagger.tag(images)]
        return next(tagger.tag([images]))[1]  # type: ignore[list-item]

    def vocabulary_of(self, labels: Sequence[str] | LabelVocabulary | None) -> LabelVocabulary:
        """The vocabulary that `labels` means: the model's own by default.

        Raises:
            UserError: There is none, or the names are no proper list.
        """
        labels = self.vocabulary if labels is None else labels
        if labels is None:
            raise UserError("labels: none given, and the model has no vocabulary; pass a list of label names")
        return LabelVocabulary.from_any(labels)

    def zero_shot(self) -> OVMultiLabelClassifier:
        """The original CLIP on the same labels: cosine similarity, the fixed template, nothing learned."""
        model = copy.deepcopy(self, {id(self._trainer): None})
        model.image_encoder.replace_tail(copy.deepcopy(self.teacher))
        model.head = CosineHead()
        template = getattr(self.prompt, "template", MKT_TEMPLATE)
        model.prompt = TemplatePrompt(template).bind(model.prompt.text_encoder)
        return model

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """See before the first batch that `compile` can work.

        Raises:
            UserError: It cannot.
        """
        self._label_embeds.clear()
        if self.image_encoder.execution.compile:
            check_compiler(self.trainer.strategy.root_device)

    def start_stage(self, stage: Stage) -> None:
        """Make this stage's parameters, and no others, learn."""
        self.stage = stage
        self.requires_grad_(False)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        self._groups = []  # by name: a strategy may replace the parameters by shards of one dimension
        for group in stage.parameter_groups(self):
            for parameter in group["params"]:
                parameter.requires_grad_(True)
            self._groups.append({**group, "params": [names[id(parameter)] for parameter in group["params"]]})

    def configure_model(self) -> None:
        """Cut the parameters into shards where Lightning's `ModelParallelStrategy` asks for it."""
        if self.device_mesh is not None:
            # The text tower stays whole within a step: it is small, and not all processes may run it equally often.
            blocks = [*self.image_encoder.vision_model.encoder.layers, *self.teacher.layers]
            entries = ("training_step", "validation_step", "test_step", "predict_step")
            shard(self, blocks, self.device_mesh["data_parallel"], entries)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and half-cosine, stepped per batch."""
        parameters = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in self.named_parameters()}
        groups = [{**group, "params": [parameters[name] for name in group["params"]]} for group in self._groups]
        optimizer = torch.optim.AdamW(groups, lr=self.stage.lr)
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or self.stage.epochs
        warmup = min(self.stage.warmup_epochs / epochs, 1) * total
        schedule = WarmupCosineLR(optimizer, total_steps=total, warmup_steps=warmup, min_lr=self.stage.min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Mean loss of a batch's images; those without a present seen label are left out.

        Of several processes each counts as much as it has such images, so that the mean of their gradients is the
        gradient of the mean over all images.
        """
        seen = self._vocabulary.seen_slice
        targets = batch["labels"][:, seen]
        kept = (targets == 1).any(dim=1)
        images, together = int(kept.sum()), self.trainer.world_size > 1
        share = image_share(images, self.device) if together else 1
        if not images:
            if not together:
                return None  # the step is skipped
            kept[0] = True  # all processes run the same modules, whose parameters they may share
        student, teacher = self._student_and_teacher(batch, kept)
        label_embeds, targets = self._scored_labels(targets[kept])
        logits = self._score(student, label_embeds)
        if not images:
            return self._zero_loss(logits)
        loss: Tensor = self.loss(logits, targets)
        self.log("train/classification", loss, batch_size=images)
        if teacher is not None:
            distillation = self.distillation(student, teacher)
            self.log("train/distillation", distillation, batch_size=images)
            loss = loss + self.distillation_weight * distillation
        self.log("train/loss", loss, prog_bar=True, batch_size=images)
        return loss * share

    def _scored_labels(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the seen labels that this step ranks, and their columns of the targets `[B, S]`."""
        number = self.stage.labels_per_step
        if number is None or number >= targets.shape[1]:
            seen = self._vocabulary.seen_slice
            return self.embed_labels()[seen] if self.stage.fixed_prompt else self.prompt(self._seen_vocabulary), targets
        present = (targets == 1).any(dim=0)
        # A random order with the batch's present labels first.
        order = (torch.rand(len(present)).to(present.device) + present).argsort(descending=True)
        columns = order[: max(number, int(present.sum()))].sort().values
        if self.stage.fixed_prompt:
            return self.embed_labels()[columns], targets[:, columns]
        return self.prompt.embed(tuple(self._vocabulary.texts[i] for i in columns.tolist())), targets[:, columns]

    def _student_and_teacher(
        self, batch: Mapping[str, Any], kept: Tensor
    ) -> tuple[ImageFeatures, ImageFeatures | None]:
        if "features" in batch:
            return ImageFeatures(*(part[kept] for part in self._features(batch))), None
        with torch.no_grad():
            hidden_states = self.image_encoder.trunk(batch["pixel_values"][kept], self.num_tail_layers)
        student = self.image_encoder.tail(self.num_tail_layers)(hidden_states)
        if not (self.stage.distil and self.distillation_weight):
            return student, None
        with torch.no_grad():
            return student, self.teacher(hidden_states)

    def _zero_loss(self, logits: Tensor) -> Tensor:
        """A loss of 0 that all learning parameters take part in."""
        parts = [*self.loss.parameters(), *self.distillation.parameters()]
        return torch.stack([logits.sum(), *(p.sum() for p in parts if p.requires_grad)]).sum() * 0

    @property
    def _vocabulary(self) -> LabelVocabulary:
        if self.vocabulary is None:
            raise UserError("labels: training and evaluation need a vocabulary; pass labels= or use a data module's")
        return self.vocabulary

    # ------------------------------------------------------------------ evaluation

    def on_validation_start(self) -> None:
        """Forget label embeddings where the prompt learns: of a shard no version tells that it changed."""
        if not self.stage.fixed_prompt:
            self._label_embeds.clear()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the metrics: unseen labels alone (ZSL), all labels (GZSL), seen labels alone."""
        if len(batch["image_id"]) == 0:  # all of its pictures were broken and left out
            return
        features = self._features(batch)
        label_embeds = self.embed_labels()
        for protocol, columns in self._protocols().items():
            logits = self._score(features, label_embeds[columns])
            self.evaluation.update(protocol, logits, batch["labels"][:, columns])

    def _protocols(self) -> dict[str, slice]:
        """Columns of the vocabulary that each protocol scores."""
        vocabulary = self._vocabulary
        unseen = {"zsl": vocabulary.unseen_slice, "gzsl": slice(None)} if vocabulary.unseen else {}
        return {"seen": vocabulary.seen_slice, **unseen}

    def _features(self, batch: Mapping[str, Any]) -> ImageFeatures:
        """Features of a batch: kept on disk by `ovml.feature_cache`, or of its pictures."""
        if "features" in batch:
            return ImageFeatures(batch["features"][:, 0], batch["features"][:, 1:])
        return self.encode_images(batch["pixel_values"])

    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Features of normalised images `[B, 3, H, W]`, by the same blocks as in training."""
        features: ImageFeatures = self.image_encoder.tail(self.num_tail_layers)(
            self.image_encoder.trunk(pixel_values, self.num_tail_layers)
        )
        return features

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the metrics as `val/...`."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics as `test/...`."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        for protocol, columns in self._protocols().items():
            # A process that was given no image takes part in the others' sums all the same.
            nothing = torch.empty(0, len(range(len(self._vocabulary))[columns]), device=self.device)
            self.evaluation.update(protocol, nothing, nothing.to(torch.int8))
        metrics = self.evaluation.compute()
        self.evaluation.reset()
        # The metrics have been summed over processes: they are the same on all of them.
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        headline = "zsl/mAP" if "zsl/mAP" in metrics else "seen/mAP"
        self.log(headline, metrics[headline], prog_bar=True, logger=False, sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Scores `[B, L]` of the vocabulary with the images' ids."""
        if len(batch["image_id"]) == 0:
            return {"image_id": [], "scores": batch["pixel_values"]}
        return {"image_id": batch["image_id"], "scores": self(batch["pixel_values"])}

    # ------------------------------------------------------------------ checkpoints

    def _find_learned_names(self) -> frozenset[str]:
        """Names of all that a checkpoint must hold: what any stage changes."""
        learned = {id(p) for stage in self.stages for group in stage.parameter_groups(self) for p in group["params"]}
        parts = ("head.", "loss.", "distillation.")
        names = {name for name, p in self.named_parameters() if id(p) in learned}
        own = {name for name in self.state_dict() if name.startswith(parts)}
        own |= {f"prompt.{name}" for name in self.prompt.state_dict() if not name.startswith("text_encoder.")}
        return frozenset(names | own)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what learned; the frozen CLIP is loaded by its name."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in self._learned_names}
        checkpoint["ovml"] = {"stage": self.stage.name if self.stages else None, "parts": self._signature()}

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a checkpoint belongs to a model made of these parts.

        Raises:
            UserError: It was made by other parts, or lacks or adds weights.
        """
        check_learned(checkpoint, self._signature(), self._learned_names)

    def load_learned(self, path: str | Path) -> None:
        """Load learned weights from a checkpoint that `ovml fit` wrote.

        Raises:
            UserError: The file is missing, unreadable, or of a model of other parts.
        """
        checkpoint = read_checkpoint(path)
        try:
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"], strict=False)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error

    @classmethod
    def from_checkpoint(cls, path: str | Path, **parts: Any) -> OVMultiLabelClassifier:
        """Load a model from a checkpoint: what learned from the file, the frozen CLIP by its name.

        Args:
            path: A checkpoint that `ovml fit` or a `Trainer` wrote.
            parts: Constructor arguments that a checkpoint cannot hold: parts that were made in Python.

        Raises:
            UserError: The file is missing or unreadable, or was made by a model of other parts.
        """
        read_checkpoint(path)
        try:
            # The file holds what learned: that the frozen weights are not in it is as it should be.
            warnings.filterwarnings("ignore", "Found keys that are in the model state dict but not in the checkpoint")
            return cls.load_from_checkpoint(path, map_location="cpu", weights_only=True, **parts)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error

    def _signature(self) -> dict[str, str]:
        return {"head": signature(self.head), "prompt": signature(self.prompt)}


def _possible_ks(ks: Sequence[int], vocabulary: LabelVocabulary | None) -> list[int]:
    sizes = (len(vocabulary.seen), len(vocabulary.unseen)) if vocabulary is not None else ()
    return [k for k in ks if all(k <= size for size in sizes if size)]


def _load_parts(clip: str | nn.Module, tokenizer: Any) -> tuple[CLIPModel, PreTrainedTokenizerBase, ImageSpec]:
    if isinstance(clip, str):
        return load_clip(clip), tokenizer or load_tokenizer(clip), load_image_spec(clip)
    if tokenizer is None:
        raise UserError("tokenizer: needed where clip is a CLIPModel; pass the tokenizer that belongs to it")
    model: CLIPModel = copy.deepcopy(clip)  # type: ignore[assignment]
    return model, tokenizer, ImageSpec(model.config.vision_config.image_size)
