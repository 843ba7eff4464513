"""The stages of training as data: what learns, at which rate, for how long; and how one follows the other."""

from __future__ import annotations

import copy
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ovml.training.distributed import cuts_models
from ovml.training.optim import layer_decay_groups
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, Trainer

    from ovml.classifier import OVMultiLabelClassifier


class Stage(ABC):
    """One stretch of training with its own learning parameters, rate and length.

    Subclass it, say in `parameter_groups` what learns, and list it under `--model.stages`.

    Args:
        epochs: Passes over the training set.
        lr: Peak learning rate.
        min_lr: Rate at the end of the half-cosine.
        warmup_epochs: Linear warm-up from 0, in epochs.
        weight_decay: Decoupled weight decay (AdamW); never on 1-D parameters.

    Example:
        >>> class ProjectionStage(Stage):
        ...     name = "projection"
        ...     def parameter_groups(self, model):
        ...         return [{"params": list(model.image_encoder.visual_projection.parameters()), "name": "projection"}]
        >>> ProjectionStage(epochs=1, lr=1e-3, min_lr=0, warmup_epochs=0, weight_decay=0).fixed_prompt
        True
    """

    name: str
    """Names the stage's folder in a run and its row in the results."""
    num_layers: int = 0
    """Last blocks of the vision tower that learn."""
    distil: bool = False
    """Whether the distillation loss is added."""
    fixed_prompt: bool = True
    """Whether label embeddings stay as they are, so that they are computed once."""
    labels_per_step: int | None = None
    """Seen labels that a step ranks; `None` for all."""
    added: frozenset[str] = frozenset()
    """Of what `prepare` puts into the tower, the names of those that a saved model keeps beside the tower's weights."""

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 2,
        weight_decay: float = 0.05,
    ) -> None:
        if epochs < 1 or not 0 <= warmup_epochs <= epochs:
            raise UserError(
                f"stage {self.name!r}: epochs must be at least 1 and warmup_epochs from 0 to epochs; "
                f"got epochs={epochs}, warmup_epochs={warmup_epochs}"
            )
        self.epochs = epochs
        self.lr = lr
        self.min_lr = min_lr
        self.warmup_epochs = warmup_epochs
        self.weight_decay = weight_decay

    def prepare(self, model: OVMultiLabelClassifier) -> None:  # noqa: B027
        """Put into a new model what the stage needs in it; its teacher and zero-shot form stay the original."""

    @abstractmethod
    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """Optimizer groups (`params`, `lr`, `weight_decay`, `name`) of all that learns in this stage."""

    def part_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """Groups of the head's, the loss's and the distillation's own parameters."""
        parts = [*model.head.parameters(), *model.loss.parameters(), *model.distillation.parameters()]
        return decay_groups(parts, "parts", self.lr, self.weight_decay)


class VisionStage(Stage):
    """Stage 1 of MKT: the last blocks of the vision tower learn, with distillation from the original CLIP.

    Beside the blocks, the post-layernorm and the projection, a head's and a loss's own parameters learn.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`; the rate of post-layernorm, projection and head.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
        layer_decay: Block `i` of `N` learns at `lr * layer_decay ** (N + 1 - i)`.
        num_layers: Number of last blocks that learn ("fix_layer 10" of 12 in the published code).

    Example:
        >>> VisionStage(epochs=5, num_layers=3).warmup_epochs
        2
    """

    name = "vision"
    distil = True

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 2,
        weight_decay: float = 0.05,
        layer_decay: float = 0.65,
        num_layers: int = 2,
    ) -> None:
        super().__init__(epochs, lr, min_lr, warmup_epochs, weight_decay)
        self.layer_decay = layer_decay
        self.num_layers = num_layers

    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """Layer-wise decayed groups of the tower, then the other parts' own parameters."""
        groups = layer_decay_groups(model.image_encoder, self.lr, self.weight_decay, self.layer_decay, self.num_layers)
        return groups + self.part_groups(model)


class HeadStage(Stage):
    """Both towers are frozen as a whole, post-layernorm and projection too; the head's and the loss's parameters learn.

    A distillation's own learn as well; one without any compares the frozen tower with itself and changes nothing. The
    vision tower keeps no graph and, with augmentation off, need not run again: see `FeatureCache`.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.

    Raises:
        UserError: When a model is made: neither its head nor its loss has parameters.

    Example:
        >>> from ovml import OVMultiLabelClassifier
        >>> from ovml.losses import ZLPRLoss
        >>> model = OVMultiLabelClassifier("ovml-demo", ["dog"], loss=ZLPRLoss(learned=True), stages=[HeadStage()])
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['loss.log_scale', 'loss.learned_offset']
    """

    name = "head"
    distil = True

    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """The head's, the loss's and the distillation's own parameters."""
        if not [*model.head.parameters(), *model.loss.parameters()]:
            raise UserError(
                f"stage 'head': neither {type(model.head).__name__} nor {type(model.loss).__name__} has anything that "
                "learns; take a head such as QueryHead, or another stage"
            )
        return self.part_groups(model)


class PromptStage(Stage):
    """Stage 2 of MKT: the vision tower is frozen, the prompt learner's parameters learn, ranking loss alone.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`.
        labels_per_step: Rank only so many of the seen labels in a step: all that are present in the batch, and others
            drawn at random. It bounds the text tower's work for thousands of labels, and is another loss: scores are
            normalised over the labels drawn. Default: all labels, as the paper does.

    Example:
        >>> PromptStage(epochs=2, labels_per_step=500).fixed_prompt
        False
    """

    name = "prompt"
    fixed_prompt = False

    def __init__(
        self,
        epochs: int = 4,
        lr: float = 1e-3,
        min_lr: float = 1e-8,
        warmup_epochs: float = 0,
        weight_decay: float = 0.05,
        labels_per_step: int | None = None,
    ) -> None:
        super().__init__(epochs, lr, min_lr, warmup_epochs, weight_decay)
        if labels_per_step is not None and labels_per_step < 2:
            raise UserError(f"stage 'prompt': labels_per_step must be at least 2; got {labels_per_step}")
        self.labels_per_step = labels_per_step

    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """The prompt learner's own parameters."""
        return decay_groups(model.prompt.learned_parameters(), "prompt", self.lr, self.weight_decay)


def decay_groups(params: Sequence[nn.Parameter], name: str, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups of one rate; parameters of one dimension have no weight decay."""
    matrices = [p for p in params if p.ndim > 1]
    vectors = [p for p in params if p.ndim <= 1]
    groups = [(matrices, f"{name}_decay", weight_decay), (vectors, f"{name}_no_decay", 0.0)]
    return [{"params": p, "name": n, "lr": lr, "weight_decay": w} for p, n, w in groups if p]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: a checkpoint folder per stage, the configuration, the results.

    Args:
        path: `ROOT/version_N`.

    Example:
        >>> RunFolder(Path("runs/demo/version_0")).checkpoint("vision").as_posix()
        'runs/demo/version_0/vision/last.ckpt'
    """

    path: Path

    @classmethod
    def new(cls, root: str | Path) -> RunFolder:
        """The next free `version_N` below a root folder."""
        return cls(Path(root) / f"version_{max(cls._versions(root), default=-1) + 1}")

    @classmethod
    def find(cls, path: str | Path, root: str | Path) -> RunFolder:
        """The run that `path` means: `last` (the newest below `root`), a run folder, or a file inside one.

        Raises:
            UserError: There is no such run.
        """
        if str(path) == "last":
            versions = cls._versions(root)
            if not versions:
                raise UserError(f"no run to resume in {root}; leave --ckpt_path out to start one")
            return cls(Path(root) / f"version_{max(versions)}")
        path = Path(path)
        for folder in (path, path.parent, path.parent.parent):
            if path.exists() and (folder / "config.yaml").is_file():
                return cls(folder)
        raise UserError(
            f"{path}: not a run; give 'last', a run's folder (with its config.yaml) or a checkpoint inside one"
        )

    @staticmethod
    def _versions(root: str | Path) -> list[int]:
        found = (re.fullmatch(r"version_(\d+)", p.name) for p in Path(root).glob("version_*"))
        return [int(match[1]) for match in found if match]

    def checkpoint(self, stage: str) -> Path:
        """Where a stage's newest checkpoint is kept."""
        return self.path / stage / "last.ckpt"

    def newest_checkpoint(self) -> Path:
        """The checkpoint that was written last.

        Raises:
            UserError: The run has none yet.
        """
        found = sorted(self.path.glob("*/last.ckpt"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise UserError(f"{self.path}: this run has no checkpoint yet; let ovml fit finish an epoch first")
        return found[-1]

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """Validation metrics of each finished row: `zero-shot`, then the stages by name."""
        file = self.path / "results.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def add_result(self, row: str, metrics: dict[str, float]) -> None:
        """Record a row's metrics; its presence marks a stage as finished."""
        write_aside(self.path / "results.json", json.dumps({**self.results, row: metrics}, indent=1))


def write_aside(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it into it, so that it is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def fit_stages(
    model: OVMultiLabelClassifier,
    datamodule: LightningDataModule,
    make_trainer: Callable[[Stage | None, RunFolder | None], Trainer],
    run: RunFolder | Callable[[], RunFolder],
) -> RunFolder:
    """Train the model's stages one after the other, each with a trainer of its own.

    Each stage is one `Trainer.fit`: what learns differs between stages, and DDP fixes it when it wraps the model.
    What a run folder already holds is not done again: finished stages are loaded, and a stage with a checkpoint
    goes on from it.

    Args:
        model: Trained in place.
        datamodule: Gives training and validation data.
        make_trainer: Makes the trainer of a stage, which must write `run.checkpoint(stage.name)`; or, for `None`, one
            that only evaluates.
        run: Where checkpoints and results are kept; or what makes the folder of a new run, called by one process.

    Returns:
        The run; its `results` are the validation metrics by row: `zero-shot` and every stage.
    """
    if not model.stages:
        raise UserError("model.stages is empty: there is nothing to train; list at least one stage")
    folder = run if isinstance(run, RunFolder) else None
    if folder is None or "zero-shot" not in folder.results:
        trainer = make_trainer(None, None)
        cuts_models(trainer.strategy)  # what a stage would stumble over is said before the first evaluation
        trainer.validate(model.zero_shot(), datamodule=datamodule, verbose=False)
        if folder is None:
            # From here on the processes know each other, so that all use the folder that the first one made.
            made = run() if callable(run) and trainer.is_global_zero else None
            folder = cast("RunFolder", trainer.strategy.broadcast(made))
        _record(folder, trainer, "zero-shot")
    for stage in model.stages:
        checkpoint = folder.checkpoint(stage.name)
        if stage.name in folder.results:
            model.load_learned(checkpoint)
            continue
        model.start_stage(stage)
        trainer = make_trainer(stage, folder)
        learner = copy.deepcopy(model) if cuts_models(trainer.strategy) else model
        trainer.fit(
            learner,
            datamodule=datamodule,
            ckpt_path=checkpoint if checkpoint.is_file() else None,
            weights_only=True,
        )
        if not _validation_metrics(trainer):  # the last epoch may be one without validation
            trainer.validate(learner, datamodule=datamodule, verbose=False)
        _record(folder, trainer, stage.name)
        if learner is not model and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            model.load_learned(checkpoint)
    return folder


def _record(run: RunFolder, trainer: Trainer, row: str) -> None:
    metrics = _validation_metrics(trainer)
    if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        run.add_result(row, metrics)
    trainer.strategy.barrier()


def _validation_metrics(trainer: Trainer) -> dict[str, float]:
    return {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
