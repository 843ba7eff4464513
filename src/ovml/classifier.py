"""OVMultiLabelClassifier: Lightning's hooks around an `OpenVocabularyModel`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import BatchSizeFinder
from torch import Tensor, nn

from ovml.distillation import Distillation, FeatureL1
from ovml.encoders.checkpoints import DEFAULT
from ovml.encoders.held import hold_frozen
from ovml.encoders.image_processor import Preprocessing
from ovml.encoders.sources import PatchSource
from ovml.heads import Head
from ovml.inference.tagger import Tagger
from ovml.losses import Loss, RankingLoss
from ovml.metrics import Calibrator, EvaluationProtocol, OpenVocabularyEvaluation
from ovml.model import Labels, OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.saving.checkpoint import check_learned, load_weights, read_checkpoint
from ovml.saving.recipe import apply_recipe, model_recipe
from ovml.training.batches import set_batches
from ovml.training.callback_checks import check_callbacks
from ovml.training.callbacks.progress import reads_each_step
from ovml.training.distributed import ignore_constant_buffers, shard
from ovml.training.divergence import LossWatch
from ovml.training.learning import (
    attach_adapters,
    check_learns,
    learned_names,
    make_optimizer,
    make_zero_shot,
    start_learning,
)
from ovml.training.objective import ROWS, Objective, StepLoss, batch_features
from ovml.training.precision import check_device, held_type
from ovml.training.pretrained import PretrainedClassifier
from ovml.training.recipe import training_recipe
from ovml.training.report import learned_summary, stage_lines
from ovml.training.stages import LearningParts, PromptStage, Stage, VisionStage, find_stage
from ovml.training.step_rows import StepRows, changes_batches
from ovml.utils.console import notice
from ovml.utils.images import ImageLike
from ovml.utils.parts import warn_unless_importable
from ovml.utils.tensors import check_scores
from ovml.vocabulary import LabelVocabulary


class OVMultiLabelClassifier(PretrainedClassifier, library_name="ovml"):
    """Trains and evaluates an `OpenVocabularyModel`: CLIP adapted by multi-modal knowledge transfer (MKT, AAAI 2023).

    Args:
        clip: Name of a CLIP or SigLIP checkpoint (`ovml-demo`, a folder, or a Hub name), a `CLIPModel` or `SiglipModel`
            itself, or an `OpenVocabularyModel`, which has the other arguments of a model already.
        labels: The vocabulary. A plain list counts as seen.
        head: Scores image features against label embeddings. Default: `TwoStreamHead`.
        prompt: Turns label names into label embeddings. Default: `ContextPrompt`.
        preprocessing: Settings of the image processor. Default: the checkpoint's own.
        loss: Default: `RankingLoss`.
        distillation: Default: `FeatureL1`.
        distillation_weight: Factor of the distillation loss in stages that distil; 0 turns it off.
        stages: Stages of training, in order. Default: `VisionStage`, then `PromptStage`.
        ks: The k of precision, recall and F1 at k; each protocol leaves out those above its number of labels.
        protocols: Evaluation protocols beside ZSL, GZSL and seen labels; see `ovml.metrics.protocols`.
        images: Which images an evaluation counts; see `OpenVocabularyEvaluation`. Published results use either.
        calibrator: Fits probabilities to scores at the end of each validation. Default: `PlattScaling`.
        patch_source: Makes the patches of a CLIP tower in another way; see `ovml.encoders.sources`.
        tokenizer: Needed only where `clip` is a `CLIPModel`.
        compile: Run the blocks of both towers through `torch.compile`.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        attn_implementation: Attention of the blocks: `sdpa`, `eager` or `flash_attention_2`.

    Attributes:
        model: The model; it needs no Lightning.
        objective: The loss and the distillation.
        teacher: The end of the original image tower.
        stage: The current stage.
        evaluation: The metrics.

    Raises:
        UserError: The checkpoint cannot be loaded, the labels are not a proper list, or an argument does not fit.

    Example:
        >>> classifier = OVMultiLabelClassifier("ovml-demo", labels=["red circle", "blue star"])
        >>> [stage.name for stage in classifier.stages]
        ['vision', 'prompt']
    """

    def __init__(
        self,
        clip: str | nn.Module = DEFAULT,
        labels: LabelVocabulary | dict[str, list[str]] | list[str] | None = None,
        head: Head | None = None,
        prompt: PromptLearner | None = None,
        preprocessing: Preprocessing | None = None,
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
        patch_source: PatchSource | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(clip, OpenVocabularyModel):
            # Machine-specific settings are not saved, so checkpoints load anywhere.
            machine = (compile, gradient_checkpointing, attn_implementation)
            model = (clip, labels, head, prompt, (), preprocessing, tokenizer)
            clip = OpenVocabularyModel(*model, *machine, patch_source)
        self.model = clip
        self.objective = Objective(loss or RankingLoss(), distillation or FeatureL1(), distillation_weight)
        self.evaluation = OpenVocabularyEvaluation(protocols, (3, 5) if ks is None else ks, images, calibrator)
        self.evaluation.prepare(self.model.vocabulary)
        self._watch = LossWatch()
        self.stages = [VisionStage(), PromptStage()] if stages is None else stages
        own = self.objective.loss, self.objective.distillation, self.evaluation.calibrator
        warn_unless_importable(*own, *self.evaluation.protocols, *self.stages)
        self.teacher = attach_adapters(self.model, self.stages)
        self.save_hyperparameters(self.recipe)
        self.strict_loading = False  # checkpoints hold what learned; on_load_checkpoint checks their keys
        self._learned_names = learned_names(self, self.stages, self.model.adapters, self.learning_parts)
        if self.stages:
            self.start_stage(self.stages[0])

    @property
    def learning_parts(self) -> LearningParts:
        """All parts that a stage can train."""
        model, objective = self.model, self.objective
        return LearningParts(model.image_encoder, model.head, model.prompt, objective.loss, objective.distillation)

    @property
    def _blocks(self) -> list[nn.Module]:
        """The blocks of both towers and of the teacher."""
        of_texts = self.model.prompt.text_encoder.text_model.encoder.layers
        return [*self.model.image_encoder.vision_model.encoder.layers, *self.teacher.layers, *of_texts]

    @property
    def recipe(self) -> dict[str, Any]:
        """How the model is trained and evaluated, as plain data."""
        return training_recipe(self.objective, self.stages, self.evaluation)

    def start_stage(self, stage: Stage | str | int) -> None:
        """Make the parameters of a stage, and no others, learn; it may be given by its name or its position."""
        self.stage = stage if isinstance(stage, Stage) else find_stage(self.stages, stage)
        self._groups = start_learning(self, self.stage, self.learning_parts)
        self._learns = learned_summary(self, [name for group in self._groups for name in group["params"]])

    def setup(self, stage: str) -> None:
        """Check that `compile` works and callbacks have what they ask for; warn if the precision is slow here."""
        check_device(self.trainer, self.model.image_encoder.execution.compile)
        self.evaluation.prepare(self.model.vocabulary_of(None))
        if stage == "fit":
            ignore_constant_buffers(self)
            check_learns(self.stage, self.learning_parts)
            check_callbacks(self.trainer, self, [self.stage])
            set_batches(self.stage, self.trainer)
        self.model.forget_labels()

    def configure_model(self) -> None:
        """Shard the parameters where Lightning's `ModelParallelStrategy` asks for it."""
        if self.device_mesh is not None:
            # Not the text tower's blocks: gathering would hang where processes run that tower unequally often.
            blocks = [*self.model.image_encoder.vision_model.encoder.layers, *self.teacher.layers]
            shard(self, blocks, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Follow a `BatchSizeFinder`, which changes the number of steps; say what a `Trainer.fit` trains.

        With mixed precision, weights of frozen blocks are converted now rather than in each step.
        """
        if any(isinstance(callback, BatchSizeFinder) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            self.trainer.strategy.setup_optimizers(self.trainer)
        if self.stage in self.stages and self.trainer.is_global_zero:
            for line in stage_lines(self.trainer, self, self._learns):
                notice(line)
        hold_frozen(self._blocks, held_type(self.trainer))

    def configure_optimizers(self) -> Any:
        """The stage's optimizer and schedule, stepped per batch."""
        return make_optimizer(self, self.stage, self._groups, self.trainer)

    def on_fit_end(self) -> None:
        """Let go of what only training needs."""
        hold_frozen(self._blocks, None)

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Count what a training step needs to know of its targets while they are on the CPU.

        Lightning calls the public hook of the data module alone where both have one.
        """
        batch = super()._on_before_batch_transfer(batch, dataloader_idx)
        if not self.trainer.training or changes_batches(self, getattr(self.trainer, "datamodule", None)):
            return batch
        targets = batch["labels"][:, self.model.vocabulary_of(None).seen_slice]
        return {**batch, ROWS: StepRows(targets, self.stage)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """The loss of a batch; `None`, which skips the step, if no image has a present seen label."""
        found: StepLoss | None = self.objective(self.model, self.teacher, batch, self.stage)
        if found is None:
            return None
        self._watch.add(found.total, self.stage.name, self.global_step)
        in_bar = self._trainer is not None and reads_each_step(self.trainer)
        for name, value in found.terms.items():
            self.log(f"train/{name}", value, prog_bar=in_bar and name == "loss", batch_size=found.images)
        return found.total

    def on_train_epoch_start(self) -> None:
        """Count images anew."""
        self.objective.forget_counts()
        self._watch.forget()

    def on_train_epoch_end(self) -> None:
        """Check that the training did not diverge, and that images had labels to learn from."""
        self._watch.look()
        self.objective.check_taught(self.stage.name, self.trainer.strategy, self.device)

    def on_validation_start(self) -> None:
        """Check that the training did not diverge. Drop kept label embeddings if the prompt learns.

        Versions of sharded parameters do not show a change.
        """
        self._watch.look()
        if self.stages and not self.stage.fixed_prompt:
            self.model.forget_labels()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the metrics of every protocol, each scored by itself."""
        if len(batch["image_id"]) == 0:  # all of its images were broken and left out
            return
        score = self.model.scorer(batch_features(self.model, batch), self.model.embed_labels())
        self.evaluation.update(score, batch["labels"])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the metrics as `val/...`; fit the calibration."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics as `test/...`."""
        self._log_evaluation("test")

    def _log_evaluation(self, split: str) -> None:
        calibrate = split == "val" and not self.trainer.sanity_checking
        metrics, self.model.calibration = self.evaluation.finish(self.device, self.model.calibration, calibrate)
        # Floats, which are the same on all processes: Lightning puts them on the device, as NCCL needs it.
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)
        headline = self.evaluation.headline
        self.log(headline, metrics[headline], prog_bar=True, logger=False, sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Scores `[B, L]` of the vocabulary with the images' ids."""
        if len(batch["image_id"]) == 0:
            return {"image_id": [], "scores": batch["pixel_values"]}
        scores = self.model(batch["pixel_values"])
        check_scores(scores)
        return {"image_id": batch["image_id"], "scores": scores}

    def forward(self, pixel_values: Tensor, labels: Labels = None) -> Tensor:
        """Score images `[B, 3, H, W]`, bytes or normalized floats, against labels; logits `[B, L]`."""
        logits: Tensor = self.model(pixel_values, labels)
        return logits

    def predict_labels(self, images: Any, labels: Labels = None, **options: Any) -> Any:
        """Rank labels for one image: a list of `LabelScore(label, score)`, best first; or for each image of a list.

        Args:
            images: Paths, bytes, open files, PIL images, arrays or tensors; one, or a list of them.
            labels: Any names, seen in training or not. Default: the model's vocabulary.
            options: Of `ovml.Tagger`, such as `top_k` (5; `None` for all), `batch_size` and `probabilities`.

        Raises:
            UserError: An image cannot be read, the labels are not a proper list, or the model was never calibrated.
        """
        return Tagger(self.model, labels, **options).predict(images)

    def score_images(self, images: Iterable[ImageLike], labels: Labels = None, **options: Any) -> Tensor:
        """Scores `[N, L]` of images against labels, on the CPU; arguments as for `predict_labels`."""
        return Tagger(self.model, labels, **options).score(images)

    def zero_shot(self) -> OVMultiLabelClassifier:
        """The original CLIP on the same labels: cosine similarity, the fixed template, nothing learned."""
        classifier = copy.deepcopy(self, {id(self._trainer): None})
        make_zero_shot(classifier.model, classifier.teacher)
        classifier._learned_names = self._learned_names.intersection(classifier.state_dict())
        return classifier

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the weights that learned and the recipe; the frozen CLIP is loaded by its name."""
        self._watch.look()
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: value for name, value in state if name in self._learned_names}
        checkpoint["ovml"] = {**model_recipe(self.model), "training": self.recipe}
        checkpoint["ovml"]["stage_names"] = [stage.name for stage in self.stages]

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any], where: str = "checkpoint") -> None:
        """Check that the checkpoint is of a model of the same parts; take over its calibration."""
        check_learned(checkpoint, self.model, self._learned_names, where)
        apply_recipe(self.model, checkpoint["ovml"], where)

    def load_learned(self, path: str | Path, checkpoint: dict[str, Any] | None = None) -> None:
        """Load learned weights from a checkpoint; raises a `UserError` for one that is missing or does not fit."""
        checkpoint = checkpoint or read_checkpoint(path)
        self.on_load_checkpoint(checkpoint, str(path))
        load_weights(self, checkpoint["state_dict"], path)
