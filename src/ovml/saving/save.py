"""Saving a model as a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ovml.model import OpenVocabularyModel
from ovml.saving.card import Rows, model_card
from ovml.saving.folder import CARD, base_model, first_line, put_in_place, saved_config, write_model
from ovml.saving.load import HUB_ERRORS
from ovml.saving.recipe import PARTS
from ovml.utils.errors import UserError
from ovml.utils.version import __version__


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
        training: How it was trained, as descriptions: see `OVMultiLabelClassifier`.
        weights: Weights of the training's own parts.
        metrics: For the model card: rows such as `{"prompt": {"zsl/mAP": 0.37}}`, or a run folder (see
            `ovml.saving.card.read_metrics`).
        repo_id: Name on the Hub, for the model card. Default: the folder's name.

    Raises:
        UserError: A part cannot be described, the folder holds other files, or cannot be written.
    """
    target = Path(os.path.abspath(folder))
    training = training or {}
    config = saved_config(model, training)
    card = card_of(model, training, repo_id or target.name, metrics)
    aside = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        write_model(model, config, weights or {}, aside)
        (aside / CARD).write_text(card, encoding="utf-8")
        put_in_place(aside, target, keep_card=metrics is None)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{target}: cannot be written ({reason}); give another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def card_of(
    model: OpenVocabularyModel, training: Mapping[str, Any], source: str, metrics: Rows | str | Path | None = None
) -> str:
    """The model card: how to load the model, its parts, what it scored (see `save_model`)."""
    from huggingface_hub import ModelCardData

    base, vocabulary = base_model(model), model.vocabulary
    data = ModelCardData(
        library_name="ovml",
        tags=["open-vocabulary", "multi-label", "clip"],
        base_model=base,
        pipeline_tag="zero-shot-image-classification",
    )
    labels = "none" if vocabulary is None else f"{len(vocabulary.seen):,} seen, {len(vocabulary.unseen):,} unseen"
    facts = {
        "CLIP": base or "see `config.json`",
        "images": f"{model.image_processor.size} px",
        "labels": labels,
        **{part: f"`{type(getattr(model, part)).__qualname__}`" for part in PARTS},
        **{part: f"`{training[part]['class_path'].rpartition('.')[2]}`" for part in TRAINED if part in training},
        "probabilities": "calibrated" if model.calibration is not None else "not calibrated",
        "stages": ", ".join(stage["class_path"].rpartition(".")[2] for stage in training.get("stages", ())) or "none",
    }
    return model_card(data, source, __version__, facts, metrics)


TRAINED = ("loss", "distillation")
"""Parts of the training that a model card names."""


def card_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `save_model` that are of the model card, also as `huggingface_hub` passes them on."""
    named = {**options, **(options.get("model_card_kwargs") or {})}
    return {name: named[name] for name in ("metrics", "repo_id") if name in named}


def check_savable(
    model: OpenVocabularyModel, training: Mapping[str, Any], metrics: Rows | str | Path | None = None
) -> None:
    """Check that a model can be saved.

    Raises:
        UserError: A part cannot be described, or there are no metrics where `metrics` points to.
    """
    saved_config(model, training)
    card_of(model, training, "owner/name", metrics)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what a call of the Hub raises into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except HUB_ERRORS as error:
        raise UserError(
            f"{repo_id}: the Hugging Face Hub did not take the model ({first_line(error)}); log in with 'hf auth "
            "login', check name and network, or save it with save_pretrained"
        ) from error
