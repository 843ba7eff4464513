"""Saving a model as a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ovml.metrics.tables import Rows
from ovml.model import OpenVocabularyModel
from ovml.saving.card import model_card
from ovml.saving.folder import CARD, check_replaceable, saved_config, write_model
from ovml.saving.load import HUB_ERRORS
from ovml.utils.errors import UserError, first_line
from ovml.utils.files import atomic_write, write_errors


def save_model(
    model: OpenVocabularyModel,
    folder: str | Path,
    training: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    metrics: Rows | str | Path | None = None,
    repo_id: str | None = None,
) -> None:
    """Write a model into a folder, which appears when it is complete.

    Args:
        model: The model.
        folder: A new or empty folder, or one that holds nothing but a saved model. Its model card is kept unless
            `metrics` are given.
        training: How it was trained, as descriptions; see `OVMultiLabelClassifier.recipe`.
        weights: Weights of the training's own parts.
        metrics: For the model card: rows such as `{"prompt": {"zsl/mAP": 0.37}}`, or a run folder (see
            `ovml.saving.card.read_metrics`).
        repo_id: Name on the Hub, for the model card. Default: the folder's name.

    Raises:
        UserError: A part cannot be described, the folder holds other files, or cannot be written.
    """
    if model.looks_again:
        raise UserError("scoring: a second look is not saved with a model; name it when the plain CLIP is loaded")
    target = Path(folder).resolve()  # a link to a folder stays a link
    training = training or {}
    config = saved_config(model, training)
    card = model_card(model, training, repo_id or target.name, metrics)
    with write_errors(target, "give another folder"), atomic_write(target, replace_folder=True) as beside:
        beside.mkdir()
        write_model(model, config, weights or {}, beside)
        check_replaceable(target, beside)
        if metrics is None and (target / CARD).is_file():
            shutil.copy2(target / CARD, beside / CARD)
        else:
            (beside / CARD).write_text(card, encoding="utf-8")


def card_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the model card's options of `save_model`, also from where `huggingface_hub` passes them on."""
    named = {**options, **(options.get("model_card_kwargs") or {})}
    return {name: named[name] for name in ("metrics", "repo_id") if name in named}


def check_savable(
    model: OpenVocabularyModel, training: Mapping[str, Any], metrics: Rows | str | Path | None = None
) -> None:
    """Check that a model can be saved.

    Raises:
        UserError: A part cannot be described, or `metrics` leads to no metrics.
    """
    saved_config(model, training)
    model_card(model, training, "owner/name", metrics)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except HUB_ERRORS as error:
        raise UserError(
            f"{repo_id}: the Hugging Face Hub did not take the model ({first_line(error)}); log in with 'hf auth "
            "login', check name and network, or save it with save_pretrained"
        ) from error
