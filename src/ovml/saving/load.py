"""Loading a model by its name: a run, a checkpoint, a folder, or a name on the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError

from ovml.encoders import open_clip
from ovml.encoders.checkpoints import checkpoint_path
from ovml.heads import CosineHead
from ovml.heads.scoring import Scoring, scoring_of
from ovml.metrics.results import is_run
from ovml.model import OpenVocabularyModel
from ovml.saving.checkpoint import load_checkpoint, newest_checkpoint
from ovml.saving.folder import CARD, CONFIG, WEIGHTS, read_json, read_model
from ovml.utils.devices import choose_device, choose_precision
from ovml.utils.errors import UserError, first_line
from ovml.utils.files import restore_replaced
from ovml.utils.hub import check_hub_name

HUB_ERRORS = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, ValueError, EntryNotFoundError))
"""Errors that a call of the Hub may raise; the first is the HTTP library's own."""
DOWNLOADED = ["*.json", "merges.txt", "spiece.model", CARD]


def load_model(
    name: str | Path,
    scoring: str | Scoring | None = None,
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    **given: Any,
) -> OpenVocabularyModel:
    """Load a trained model or a plain CLIP checkpoint, in evaluation mode.

    Nothing in the files is executed: parts are made only of subclasses of ovml's base classes, from plain arguments.

    Args:
        name: A run folder or checkpoint that `ovml fit` wrote, a folder that `save_pretrained` wrote or its name on
            the Hub, or the name of a CLIP checkpoint (`ovml-demo`, a folder, a Hub name), which is used zero-shot.
        scoring: How a plain CLIP scores: a name of `ovml.heads.scoring.SCORINGS`, the import path of a head of one's
            own, or a `Scoring`. Default: `cosine`, or the head that is given.
        device: Where it runs, such as `cuda`; `auto`: the first of `cuda`, `mps` and `cpu` that is here. Default: the
            CPU.
        precision: `float32`, `bf16`, `fp16` or `auto`, which is bf16 on GPUs that multiply it and float32 on CPUs; see
            `ovml.utils.devices`. The towers compute in it; scores are float32. Default: float32.
        given: Constructor arguments of `OpenVocabularyModel` that replace the saved ones. The head and the prompt of a
            checkpoint cannot be replaced.

    Raises:
        UserError: There is no such model, it cannot be read, or the device cannot be used here; or it was trained, and
            a scoring is given.

    Example:
        >>> load_model("ovml-demo", labels=["red circle"]).vocabulary.names
        ('red circle',)
    """
    target = choose_device("cpu" if device is None else device)
    dtype = choose_precision("float32" if precision is None else precision, target)
    model = _load(name, scoring, given)
    if dtype != model.dtype:
        model.set_precision(dtype)
    return model.to(target)


def _load(name: str | Path, scoring: str | Scoring | None, given: Mapping[str, Any]) -> OpenVocabularyModel:
    place = find_model(str(name))
    recipe = None if os.path.isfile(place) else saved_recipe(place)
    if recipe is None and not os.path.isfile(place):
        return _plain_clip(str(place) if os.path.isdir(place) else str(name), scoring, given).eval()
    if scoring is not None:
        raise UserError(f"scoring: {name} keeps the head that it was saved with; leave it out, or take a plain CLIP")
    return load_checkpoint(place, **given) if recipe is None else read_model(place, recipe, given)[0]


def _plain_clip(name: str, scoring: str | Scoring | None, given: Mapping[str, Any]) -> OpenVocabularyModel:
    own = sorted(given.keys() & {"head", "patch_source"})
    if scoring is None and own:
        return OpenVocabularyModel(name, **{"head": CosineHead(), **given})
    if own:
        raise UserError(f"scoring: has a head and a patch source; leave out {own[0]}, or the scoring")
    chosen = scoring_of("cosine" if scoring is None else scoring)
    return OpenVocabularyModel(name, **given).scored_by(chosen)


def saved_recipe(place: Path) -> Any:
    """The recipe in the configuration of a folder; `None` for a plain CLIP, or if there is no such folder."""
    return read_json(place / CONFIG, missing={}).get("ovml")


def find_model(name: str, hub: Mapping[str, Any] | None = None) -> Path:
    """Find the checkpoint file or the folder of a model; for a plain CLIP on the Hub, return its name as a path.

    Args:
        name: See `load_model`.
        hub: Options of the download, such as `revision` and `token`.

    Raises:
        UserError: There is no such checkpoint, or the download fails.
    """
    path = Path(checkpoint_path(name))
    restore_replaced(path)
    # Functions of `os`: methods of `Path` raise an error for a name that is too long.
    if os.path.isdir(path) and is_run(path):
        return newest_checkpoint(path)
    if path.suffix == ".ckpt" and not os.path.isfile(path):
        raise UserError(f"{path}: no such checkpoint; check the path")
    if os.path.exists(path):
        return path
    if not hub:  # else its own cache may have it
        check_hub_name(name)
    return download(name, hub or {}) or Path(name)


def download(name: str, options: Mapping[str, Any]) -> Path | None:
    """Download a saved model from the Hub; return `None` for a name without one, or of a plain CLIP without options.

    Raises:
        UserError: A file of the model cannot be downloaded.
    """
    try:
        config = read_json(Path(hf_hub_download(name, CONFIG, **options)))
    except RemoteEntryNotFoundError:
        config = {}  # OpenCLIP's repositories may have only their own
    except HUB_ERRORS:
        return None  # transformers, which is asked next, says why
    if "ovml" not in config and not any(options.values()):
        return None
    weights = [WEIGHTS] if "model_type" in config else open_clip.WEIGHTS
    try:
        return Path(snapshot_download(name, allow_patterns=[*DOWNLOADED, *weights], **options))
    except HUB_ERRORS as error:
        reason = first_line(error)
        raise UserError(f"{name}: the Hugging Face Hub did not give all files ({reason}); check the network") from error
