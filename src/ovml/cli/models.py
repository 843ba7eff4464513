"""Loading the model that the options name, for the commands that score labels."""

from __future__ import annotations

import argparse

import transformers

from ovml.model import OpenVocabularyModel
from ovml.saving import load_model
from ovml.utils.console import notice
from ovml.utils.errors import UserError, first_line
from ovml.utils.resources import DEMO
from ovml.vocabulary import LabelVocabulary


def chosen_model(args: argparse.Namespace) -> OpenVocabularyModel:
    """Load the model that `--model` names, on the device that `--device` names, if the command has that option.

    Raises:
        UserError: The model cannot be loaded, or the device cannot be used here.
    """
    transformers.utils.logging.disable_progress_bar()
    model = load_model(args.model)
    device = getattr(args, "device", "cpu")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not usable here ({first_line(error)}); try cpu") from error


def model_for(args: argparse.Namespace, labels: LabelVocabulary | None) -> OpenVocabularyModel:
    """Load the model to score these labels, or its own if there are none.

    Raises:
        UserError: See `chosen_model`; or there are neither labels nor a vocabulary of the model's own.
    """
    if args.model == DEMO:
        notice(f"{DEMO} knows drawn shapes only; for photographs give --model")
    model = chosen_model(args)
    if labels is None and model.vocabulary is None:
        raise UserError("no labels: give --labels 'a,b' or --labels-file FILE; this model has no vocabulary of its own")
    return model
