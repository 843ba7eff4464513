"""Loading the model that the options name, for the commands that score labels."""

from __future__ import annotations

import argparse

import transformers

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
    transformers.utils.logging.disable_progress_bar()
    scoring = getattr(args, "scoring", None)
    model = load_model(args.model, scoring)
    if scoring is not None and model.scoring is not None:
        notice(f"scoring {scoring}: {model.scoring.cost}")
    device = getattr(args, "device", "cpu")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({first_line(error)}); try cpu") from error


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
