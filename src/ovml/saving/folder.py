"""The folder of a saved model: a plain CLIP checkpoint and all that ovml adds to it.

config.json               the CLIP's configuration, and the recipe of the model under the key `ovml`
model.safetensors         the CLIP's weights with learned ones in their place, then the parts' own
preprocessor_config.json, tokenizer*.json
labels.json               the vocabulary, if there is one
calibration.json          the calibration, if the model was validated
adapted.json              what images without labels it was fitted on, if it was
README.md                 the model card
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ovml.encoders.adapters import plain_state
from ovml.metrics.adapted import Adapted
from ovml.metrics.calibration import Calibration
from ovml.model import OpenVocabularyModel
from ovml.saving.checkpoint import check_names
from ovml.saving.recipe import PARTS, SAVE_AGAIN, base_model, build_parts, checked_recipe, part_weights, parts_recipe
from ovml.utils.errors import UserError, error_at, first_line
from ovml.utils.files import read_text
from ovml.utils.parts import check_importable, describe
from ovml.vocabulary import LabelVocabulary

CONFIG, WEIGHTS, LABELS, CARD = "config.json", "model.safetensors", "labels.json", "README.md"
CALIBRATION, ADAPTED = "calibration.json", "adapted.json"
TRAINING_PARTS = ("loss", "distillation")
"""Parts of the training whose weights are saved too."""


def saved_config(model: OpenVocabularyModel, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`.

    Raises:
        UserError: A part cannot be described.
    """
    from transformers import CLIPConfig, SiglipConfig

    for part in (model.head, model.prompt, *model.adapters):
        check_importable(part)
    text: Any = model.prompt.text_encoder
    towers = {"vision_config": model.image_encoder.vision_model, "text_config": text.text_model}
    configs: dict[str, Any] = {name: tower.config.to_dict() for name, tower in towers.items()}
    siglip = model.image_encoder.model_type == "siglip"
    clip = SiglipConfig(**configs) if siglip else CLIPConfig(**configs, projection_dim=text.embed_dim)
    recipe = {**parts_recipe(model, describe), "base_model": base_model(model), "training": training}
    # LoRA is merged into the weights, so a loaded model does not need it.
    recipe["adapters"] = [describe(adapter) for adapter in model.adapters if adapter.added]
    dtype = str(next(iter(model_weights(model).values())).dtype).removeprefix("torch.")
    plain: dict[str, Any] = json.loads(clip.to_json_string(use_diff=False))
    return {**plain, "architectures": ["SiglipModel" if siglip else "CLIPModel"], "dtype": dtype, "ovml": recipe}


def model_weights(model: OpenVocabularyModel) -> dict[str, Tensor]:
    """All weights that the scores depend on: the CLIP's under its own names, then the head's and the prompt's."""
    encoders = (model.image_encoder, model.prompt.text_encoder)
    states = {name: plain_state(module) for encoder in encoders for name, module in encoder.named_children()}
    clip = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    return {**clip, "logit_scale": model.logit_scale, **part_weights(model)}


def write_model(
    model: OpenVocabularyModel, config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> None:
    """Write all files but the model card into an empty folder.

    Args:
        model: The model.
        config: Output of `saved_config`.
        weights: Weights of the training's own parts.
        folder: The folder.
    """
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    whole = {**model_weights(model), **weights}
    whole = {name: value.detach().cpu().clone().contiguous() for name, value in whole.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer: Any = model.prompt.text_encoder.tokenizer
    tokenizer.save_pretrained(folder)
    own = model.image_processor
    settings: dict[str, Any] = {"image_mean": own.mean, "image_std": own.std, "resample": own.resample}
    square = {"height": own.size, "width": own.size}
    if model.image_encoder.model_type == "siglip":
        processor = SiglipImageProcessorPil(size=square, **settings)
    else:
        side = own.short_side
        size = {"height": side, "width": side} if own.squash else {"shortest_edge": side}
        settings |= {"round_crop": True} if own.round_crop else {}  # transformers keeps it and does not follow it
        processor = CLIPImageProcessorPil(size=size, crop_size=square, **settings)
    processor.save_pretrained(folder)
    if model.vocabulary is not None:
        (folder / LABELS).write_text(json.dumps(model.vocabulary.to_dict(), indent=1, ensure_ascii=False), "utf-8")
    if model.calibration is not None:
        (folder / CALIBRATION).write_text(json.dumps(model.calibration.to_dict(), ensure_ascii=False), "utf-8")
    if model.adapted is not None:
        (folder / ADAPTED).write_text(json.dumps(model.adapted.to_dict(), ensure_ascii=False), "utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read it


def check_replaceable(target: Path, written: Path) -> None:
    """Check that a folder holds nothing, or nothing but a saved model.

    Args:
        target: The folder, which may be missing.
        written: The saved model that will replace it.

    Raises:
        UserError: It holds other files, or is a file.
    """
    if target.is_file():
        raise UserError(f"{target}: is a file; give a folder")
    others = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if "ovml" in read_json(target / CONFIG, missing={}):
        others -= {LABELS, CALIBRATION, ADAPTED, CARD, *(path.name for path in written.iterdir())}
    if others:
        raise UserError(f"{target}: holds other files ({min(others)}); give a new or empty folder")


def read_model(folder: Path, recipe: Any, given: Mapping[str, Any]) -> tuple[OpenVocabularyModel, dict[str, Tensor]]:
    """Make the model of a folder.

    Args:
        folder: A folder that `write_model` filled.
        recipe: The value of `ovml` in its `config.json`.
        given: Constructor arguments of the model that replace the saved ones.

    Returns:
        The model, in evaluation mode, and weights of the training's own parts, such as `loss.margin`.

    Raises:
        UserError: A file is missing or broken, a weight is missing or unexpected, or a part cannot be made.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    arguments = {**build_parts(checked_recipe(recipe, folder / CONFIG), given, folder / CONFIG), **given}
    if "labels" not in given and (folder / LABELS).is_file():
        lists = read_json(folder / LABELS)
        with error_at(folder / LABELS, SAVE_AGAIN):
            arguments["labels"] = LabelVocabulary.from_any(lists)
    replaced = tuple(f"{part}." for part in PARTS if part in given)
    try:
        with safe_open(file, "pt") as opened:
            names = {name for name in opened.keys() if not name.startswith(replaced)}  # noqa: SIM118
            with _quiet_transformers():
                model = OpenVocabularyModel(str(folder), **arguments)
            training = {name for name in names if name.partition(".")[0] in TRAINING_PARTS}
            expected = {name for name in model_weights(model) if not name.startswith(replaced)}
            check_names(names - training, expected, file, SAVE_AGAIN)
            # transformers has loaded the CLIP's own weights.
            added = {name for adapter in model.adapters for name in adapter.added}
            own = {name: name for name in names & part_weights(model).keys()}
            own |= {f"image_encoder.{name}": name for name in names if added & set(name.split("."))}
            state = {name: opened.get_tensor(saved).clone() for name, saved in own.items()}
            model.load_state_dict(state, strict=False)
            weights = {name: opened.get_tensor(name).clone() for name in training}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); save or download the model again") from error
    if not set(PARTS) & set(given):
        if (folder / CALIBRATION).is_file():
            model.calibration = Calibration.from_dict(read_json(folder / CALIBRATION), str(folder / CALIBRATION))
        if (folder / ADAPTED).is_file():
            model.adapted = Adapted.from_dict(read_json(folder / ADAPTED), str(folder / ADAPTED))
    model.image_encoder.requires_grad_(False)
    model.base_model = recipe.get("base_model")
    return model.eval(), weights


def read_json(file: Path, missing: Any = None) -> Any:
    """Read a JSON object; `missing` replaces a file that does not exist."""
    if missing is not None and not os.path.isfile(file):
        return missing
    text = read_text(file, "model's", "JSON")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); save or download the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object; save or download the model again")
    return content


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the warning of transformers about the parts' weights, which it does not know."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
