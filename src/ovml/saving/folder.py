"""The folder of a saved model: a plain CLIP checkpoint and all that ovml adds to it.

config.json               the CLIP's configuration; under the key `ovml` the parts' class paths and arguments
model.safetensors         the CLIP's weights with what learned in its place, then the parts' own
preprocessor_config.json, tokenizer*.json
labels.json               the vocabulary, where there is one
calibration.json          what turns scores into probabilities, where the model was validated
README.md                 the model card
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ovml.encoders.adapters import plain_state
from ovml.metrics.calibration import Calibration
from ovml.model import OpenVocabularyModel
from ovml.saving.recipe import FORMAT, PARTS, build_parts, model_parts
from ovml.utils.errors import UserError
from ovml.utils.parts import check_importable
from ovml.vocabulary import LabelVocabulary

CONFIG, WEIGHTS, LABELS, CARD = "config.json", "model.safetensors", "labels.json", "README.md"
CALIBRATION = "calibration.json"
TRAINING_PARTS = ("loss", "distillation")
"""Parts of the training whose weights are kept too."""


class SavedModel(NamedTuple):
    """What a folder holds.

    Attributes:
        model: The model, in evaluation mode.
        training: How it was trained: the loss, the stages and so on, as descriptions; empty where it was not.
        weights: Weights of the training's own parts, such as `loss.margin`.
    """

    model: OpenVocabularyModel
    training: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def saved_config(model: OpenVocabularyModel, training: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` holds.

    Raises:
        UserError: A part cannot be described.
    """
    from transformers import CLIPConfig, SiglipConfig

    from ovml.utils.version import __version__

    for part in (model.head, model.prompt, *model.adapters):
        check_importable(part)
    text: Any = model.prompt.text_encoder
    towers = {"vision_config": model.image_encoder.vision_model, "text_config": text.text_model}
    configs: dict[str, Any] = {name: tower.config.to_dict() for name, tower in towers.items()}
    siglip = model.image_encoder.model_type == "siglip"
    clip = SiglipConfig(**configs) if siglip else CLIPConfig(**configs, projection_dim=text.embed_dim)
    parts = model_parts(model)
    # Low-rank updates are merged into the weights: a loaded model is complete without their adapters.
    parts["adapters"] = [d for d, adapter in zip(parts["adapters"], model.adapters, strict=True) if adapter.added]
    ovml = {"format": FORMAT, "version": __version__, "base_model": base_model(model), **parts, "training": training}
    dtype = str(next(iter(model_weights(model).values())).dtype).removeprefix("torch.")
    plain: dict[str, Any] = json.loads(clip.to_json_string(use_diff=False))
    return {**plain, "architectures": ["SiglipModel" if siglip else "CLIPModel"], "dtype": dtype, "ovml": ovml}


def model_weights(model: OpenVocabularyModel) -> dict[str, Tensor]:
    """All that the scores depend on: the CLIP's weights under its own names, then the head's and the prompt's."""
    encoders = (model.image_encoder, model.prompt.text_encoder)
    states = {name: plain_state(module) for encoder in encoders for name, module in encoder.named_children()}
    states |= {part: getattr(model, part).state_dict() for part in PARTS}
    return {
        f"{name}.{key}": value.detach()
        for name, state in states.items()
        for key, value in state.items()
        if not (name == "prompt" and key.startswith("text_encoder."))
    }


def write_model(
    model: OpenVocabularyModel, config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> None:
    """Write all but the model card into an empty folder.

    Args:
        model: The model.
        config: What `saved_config` gave.
        weights: Weights of the training's own parts.
        folder: Where to write.
    """
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    whole = {**model_weights(model), **weights}
    whole = {name: value.detach().cpu().clone().contiguous() for name, value in whole.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer: Any = model.prompt.text_encoder.tokenizer
    tokenizer.save_pretrained(folder)
    own = model.image_processor
    square = {"height": own.size, "width": own.size}
    settings: dict[str, Any] = {
        "image_mean": list(own.mean),
        "image_std": list(own.std),
        "resample": own.resample,
    }
    if model.image_encoder.model_type == "siglip":
        processor = SiglipImageProcessorPil(size=square, **settings)
    else:
        side = own.short_side
        size = {"height": side, "width": side} if own.squash else {"shortest_edge": side}
        processor = CLIPImageProcessorPil(size=size, crop_size=square, **settings)
    processor.save_pretrained(folder)
    if model.vocabulary is not None:
        (folder / LABELS).write_text(json.dumps(model.vocabulary.to_dict(), indent=1, ensure_ascii=False), "utf-8")
    if model.calibration is not None:
        (folder / CALIBRATION).write_text(json.dumps(model.calibration.to_dict(), ensure_ascii=False), "utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read it


def put_in_place(aside: Path, target: Path, keep_card: bool) -> None:
    """Rename a complete folder into its place; only an older save may stand there."""
    if not target.exists():
        aside.rename(target)
        return
    if not target.is_dir():
        raise UserError(f"{target}: is a file; give a folder")
    present = {path.name for path in target.iterdir()}
    others = sorted(present - {path.name for path in aside.iterdir()} - {LABELS, CALIBRATION})
    if present and "ovml" not in read_json(target / CONFIG, missing={}):
        others = sorted(present)
    if others:
        raise UserError(f"{target}: holds other files ({others[0]}); give a new or empty folder")
    if keep_card and CARD in present:
        shutil.copy2(target / CARD, aside / CARD)
    old = target.with_name(f"{aside.name}-old")
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def base_model(model: OpenVocabularyModel) -> str | None:
    """The Hub name of the CLIP that the model began as, where it is known."""
    name = model.base_model or model.clip_name
    known = name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if known else None


def read_model(folder: Path, saved: Any, given: Mapping[str, Any]) -> SavedModel:
    """Make the model that a folder holds.

    Args:
        folder: A folder that `write_model` filled.
        saved: What its `config.json` has under the key `ovml`.
        given: Constructor arguments of the model in the place of the saved ones.

    Raises:
        UserError: A file is missing or broken, weights are missing or too many, or a part cannot be made.
    """
    from safetensors import SafetensorError, safe_open

    file, config = folder / WEIGHTS, folder / CONFIG
    if not isinstance(saved, dict) or saved.get("format", FORMAT) > FORMAT or not {*PARTS, "training"} <= set(saved):
        version = saved.get("version") if isinstance(saved, dict) else None
        raise UserError(f"{config}: not a model that this ovml can read (written by ovml {version}); upgrade ovml")
    arguments = {**build_parts(saved, given, str(config)), **given}
    if "labels" not in given and (folder / LABELS).is_file():
        arguments["labels"] = LabelVocabulary.from_any(read_json(folder / LABELS))
    replaced = tuple(f"{part}." for part in PARTS if part in given)
    try:
        with safe_open(file, "pt") as opened:
            names = {name for name in opened.keys() if not name.startswith(replaced)}  # noqa: SIM118
            with _quiet_transformers():
                model = OpenVocabularyModel(str(folder), **arguments)
            wanted = {name for name in model_weights(model) if not name.startswith(replaced)}
            training = {name for name in names - wanted if name.partition(".")[0] in TRAINING_PARTS}
            if names - training != wanted:
                lacks = sorted(wanted - names)
                extra = sorted(names - training - wanted)
                what = f"lacks {lacks[0]!r}" if lacks else f"has {extra[0]!r}, which no part takes"
                raise UserError(
                    f"{file}: {what}; the folder is not as save_pretrained wrote it, save or download it again"
                )
            added = {kind for adapter in model.adapters for kind in adapter.added}
            _load(model.image_encoder, opened, {name: name for name in names if added & set(name.split("."))})
            for part in PARTS:
                own = {n: n.partition(".")[2] for n in names if n.partition(".")[0] == part}
                _load(getattr(model, part), opened, own)
            weights = {name: opened.get_tensor(name).clone() for name in training}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); save or download the model again") from error
    if (folder / CALIBRATION).is_file() and not set(PARTS) & set(given):
        model.calibration = Calibration.from_dict(read_json(folder / CALIBRATION), str(folder / CALIBRATION))
    model.image_encoder.requires_grad_(False)
    model.base_model = saved.get("base_model")
    return SavedModel(model.eval(), saved["training"], weights)


def _load(module: torch.nn.Module, opened: Any, names: Mapping[str, str]) -> None:
    """Load weights, in the file's precision, under names of the module's own."""
    if names:
        state = {own: opened.get_tensor(name).clone() for name, own in names.items()}
        module.load_state_dict(state, strict=False, assign=True)


def read_json(file: Path, missing: Any = None) -> Any:
    """Read a JSON object; `missing` is what a file that is not there holds."""
    if missing is not None and not file.is_file():
        return missing
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); save or download the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object; save or download the model again")
    return content


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to be part of another one."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide that transformers finds the parts' weights unexpected."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
