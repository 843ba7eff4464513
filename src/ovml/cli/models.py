"""Loading the model that the options name, for the commands that score labels."""

from __future__ import annotations

import argparse

import torch
import transformers

from ovml.inference.exported import ExportedModel, is_exported
from ovml.inference.label_cache import cached
from ovml.model import OpenVocabularyModel
from ovml.saving import load_model
from ovml.utils.console import notice, warn
from ovml.utils.devices import choose_device, choose_precision, multiplies, precision_name
from ovml.utils.errors import UserError
from ovml.utils.resources import DEFAULT, DEMO
from ovml.vocabulary import LabelVocabulary, packaged_vocabulary

EVERYDAY = "everyday"
"""The vocabulary of models that have none."""


def chosen_model(args: argparse.Namespace) -> OpenVocabularyModel:
    """Load the model that `--model` names, where `--device` and `--precision` say, if the command has these options.

    Raises:
        UserError: The model cannot be loaded, or the device cannot be used here.
    """
    if is_exported(args.model):
        raise UserError(f"--model {args.model}: an exported file can tag only; give the model that it was made of")
    transformers.utils.logging.disable_progress_bar()
    scoring = getattr(args, "scoring", None)
    if not hasattr(args, "device"):
        return _scored(load_model(args.model, scoring), scoring)
    device = choose_device(args.device)
    precision = getattr(args, "precision", "float32")  # else the command saves the model
    dtype = choose_precision(precision, device)
    model = load_model(args.model, scoring, device=device, precision=precision_name(dtype))
    model.label_cache = None if getattr(args, "no_cache", True) else cached
    if "auto" in (args.device, precision) and (device.type, dtype) != ("cpu", torch.float32):
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device
        notice(f"runs on {name} in {precision_name(dtype)}")
    if not multiplies(dtype, device):
        warn(f"--precision {precision}: slow on this processor, which has no instructions for it; try float32")
    return _scored(model, scoring)


def _scored(model: OpenVocabularyModel, scoring: str | None) -> OpenVocabularyModel:
    if scoring is not None and model.scoring is not None:
        notice(f"scoring {scoring}: {model.scoring.cost}")
    return model


def exported_and_labels(
    args: argparse.Namespace, labels: LabelVocabulary | None
) -> tuple[OpenVocabularyModel, LabelVocabulary | None]:
    """Load the exported file that `--model` names, as `model_and_labels` loads a model.

    Raises:
        UserError: It cannot be loaded, or another device than the CPU is asked for.
    """
    if args.device not in ("auto", "cpu"):
        raise UserError(f"--device {args.device}: exported files run on the CPU; leave it out")
    if args.precision not in ("auto", "float32"):
        raise UserError(
            f"--precision {args.precision}: exported files have the precision they were written in; leave it out"
        )
    return ExportedModel(args.model), labels


def model_and_labels(
    args: argparse.Namespace, labels: LabelVocabulary | None
) -> tuple[OpenVocabularyModel, LabelVocabulary | None]:
    """Load the model, and choose what it scores: these labels, its own, or else those of photographs.

    Returns:
        The model and the labels; `None` for the model's own.

    Raises:
        UserError: See `chosen_model`; or there are no labels for the embedded model.
    """
    if args.model == DEMO:
        notice(f"{DEMO} knows drawn shapes only; for photographs give --model")
    model = chosen_model(args)
    if labels is not None or model.vocabulary is not None:
        return model, labels
    if args.model == DEMO:
        raise UserError(
            f"no labels: {DEMO} knows drawn shapes, and needs the names to choose from: --labels 'red circle,blue "
            f"star,heart,fish,moon'; for photographs give a --model such as {DEFAULT}, which needs no labels"
        )
    labels = packaged_vocabulary(EVERYDAY)
    notice(f"no labels given: --vocabulary {EVERYDAY}, {len(labels):,} labels; 'ovml labels' lists others")
    return model, labels
