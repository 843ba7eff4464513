"""What learns in a stage, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovml.encoders import ImageTail
from ovml.encoders.adapters import TowerAdapter, without_adapters
from ovml.heads import CosineHead
from ovml.model import OpenVocabularyModel
from ovml.prompts import TemplatePrompt
from ovml.prompts.base import MKT_TEMPLATE
from ovml.training.optim import fuse
from ovml.training.stages import LearningParts, Stage, check_stages
from ovml.utils.errors import UserError

Groups = list[dict[str, Any]]
"""Optimizer groups whose `params` are names: a strategy may replace the parameters by shards of one dimension."""


def attach_adapters(model: OpenVocabularyModel, stages: Sequence[Stage]) -> ImageTail:
    """Attach what the stages add to the image tower; returns the end of the original tower, which is the teacher.

    The teacher begins where the first block learns; the blocks before it are frozen and serve both.

    Raises:
        UserError: Two stages change the tower, or it cannot be adapted.
    """
    check_stages(stages)
    adapters = [stage.adapter for stage in stages if stage.adapter is not None]
    learning = [*(stage.num_layers for stage in stages), *(adapter.num_layers for adapter in adapters)]
    tail = model.image_encoder.tail(max(model.image_encoder.read_layers, *learning, 0))
    teacher = without_adapters(copy.deepcopy(tail)).requires_grad_(False)
    for adapter in adapters:
        model.add_adapter(adapter)
    for adapter in model.adapters:
        adapter.attach_to_teacher(model.image_encoder, teacher)
    return teacher


def make_zero_shot(model: OpenVocabularyModel, teacher: ImageTail) -> None:
    """Undo all training of a model in place: original image tower, cosine similarity, fixed template."""
    model.image_encoder.replace_tail(copy.deepcopy(teacher))
    model.head, model.calibration = CosineHead(), None
    template = getattr(model.prompt, "template", MKT_TEMPLATE)
    model.prompt = TemplatePrompt(template).bind(model.prompt.text_encoder)


def start_learning(module: nn.Module, stage: Stage, parts: LearningParts) -> Groups:
    """Make a stage's parameters, and no others of a module, learn; returns its optimizer groups."""
    module.requires_grad_(False)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = []
    for group in stage.parameter_groups(parts):
        for parameter in group["params"]:
            parameter.requires_grad_(True)
        groups.append({**group, "params": [names[id(parameter)] for parameter in group["params"]]})
    if not any(parameter.requires_grad for parameter in parts.image_encoder.parameters()):
        parts.image_encoder.eval()  # an earlier stage's dropout ends with it
    for layer in parts.image_encoder.modules():
        if isinstance(layer, _BatchNorm):  # one that learns normalises by the batch, also in a model that was loaded
            layer.train(layer.weight.requires_grad)
    return groups


def check_learns(stage: Stage, parts: LearningParts) -> None:
    """Check that something learns in a stage.

    Raises:
        UserError: The parts that it trains have no parameters, or labels have several texts.
    """
    if parts.prompt.gives_several:
        raise UserError(f"prompt: {type(parts.prompt).__name__} with pool='max' only scores; train with pool='mean'")
    if not any(group["params"] for group in stage.parameter_groups(parts)):
        names = ", ".join(type(part).__name__ for part in vars(parts).values())
        raise UserError(
            f"stage {stage.name!r}: nothing learns in it, of {names}; take a part with parameters, such as "
            "ContextPrompt for the prompt stage, or leave the stage out"
        )


def make_optimizer(module: nn.Module, stage: Stage, groups: Groups, trainer: Any) -> dict[str, Any]:
    """The stage's optimizer and its schedule, as Lightning takes them.

    Args:
        module: Has the parameters that the groups name.
        stage: Makes both.
        groups: What `start_learning` gave.
        trainer: A Lightning `Trainer` that is about to fit.

    Raises:
        UserError: The training has no end that is known beforehand.
    """
    steps, epochs = _training_length(trainer)
    parameters = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in module.named_parameters()}
    own = [{**group, "params": [parameters[name] for name in group["params"]]} for group in groups]
    optimizer = stage.optimizer(own)
    fuse(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": stage.schedule(optimizer, steps, epochs)}


def _training_length(trainer: Any) -> tuple[int, float]:
    """Optimizer steps of a training, and epochs, of which the last may be cut."""
    steps = trainer.estimated_stepping_batches
    if steps == float("inf") or steps < 0:
        raise UserError(
            "trainer: the learning rate follows the training's length; give max_steps, or max_epochs and training data "
            "of known length"
        )
    trainer.fit_loop.setup_data()  # which the estimate does only where it counts epochs
    batches = trainer.num_training_batches
    if batches == float("inf"):
        return int(steps), max(trainer.max_epochs or 1, 1)
    return int(steps), steps / max(math.ceil(batches / trainer.accumulate_grad_batches), 1)


def learned_names(
    module: nn.Module, stages: Sequence[Stage], adapters: Sequence[TowerAdapter], parts: LearningParts
) -> frozenset[str]:
    """Names of the weights that a checkpoint keeps: what a stage changes, the adapters', and the parts' own."""
    learned = {id(p) for stage in stages for group in stage.parameter_groups(parts) for p in group["params"]}
    learned |= {id(p) for adapter in adapters for p in adapter.parameters(parts.image_encoder)}
    names = {name for name, p in module.named_parameters() if id(p) in learned}
    state, added = list(module.state_dict()), {name for adapter in adapters for name in adapter.added}
    names |= {n for n in state if n.startswith("model.image_encoder.") and added & set(n.split("."))}  # buffers too
    own = {name for name in state if name.startswith(("model.head.", "model.prompt.", "objective."))}
    return frozenset(names | {name for name in own if not name.startswith("model.prompt.text_encoder.")})
