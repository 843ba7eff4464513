"""Loading the model that the options name, for the commands that score labels."""

from __future__ import annotations

import argparse

import transformers

from ovml.inference.exported import ExportedModel, is_exported
from ovml.model import OpenVocabularyModel
from ovml.saving import load_model
from ovml.utils.console import notice
from ovml.utils.errors import UserError, first_line
from ovml.utils.resources import DEFAULT, DEMO
from ovml.vocabulary import LabelVocabulary, packaged_vocabulary

EVERYDAY = "everyday"
"""The vocabulary of models that have none."""


def chosen_model(args: argparse.Namespace) -> OpenVocabularyModel:
    """Load the model that `--model` names, on the device that `--device` names, if the command has that option.

    Raises:
        UserError: The model cannot be loaded, or the device cannot be used here.
    """
    if is_exported(args.model):
        raise UserError(f"--model {args.model}: an exported file can tag only; give the model that it was made of")
    transformers.utils.logging.disable_progress_bar()
    model = load_model(args.model)
    device = getattr(args, "device", "cpu")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({first_line(error)}); try cpu") from error


def exported_and_labels(
    args: argparse.Namespace, labels: LabelVocabulary | None
) -> tuple[OpenVocabularyModel, LabelVocabulary | None]:
    """Load the exported file that `--model` names, as `model_and_labels` loads a model.

    Raises:
        UserError: It cannot be loaded, or another device than the CPU is asked for.
    """
    if args.device not in ("auto", "cpu"):
        raise UserError(f"--device {args.device}: exported files run on the CPU; leave it out")
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
