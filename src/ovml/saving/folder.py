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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ovml.distillation import Distillation
from ovml.heads import Head
from ovml.losses import Loss
from ovml.metrics.calibration import Calibration
from ovml.prompts import PromptLearner
from ovml.saving.parts import build, describe
from ovml.training.stages import Stage
from ovml.training.tuning import plain_state
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier

FORMAT = 1
"""Grows when older versions of ovml could not read what is written."""
PARTS: dict[str, type] = {"head": Head, "prompt": PromptLearner, "loss": Loss, "distillation": Distillation}
CONFIG, WEIGHTS, LABELS, CARD = "config.json", "model.safetensors", "labels.json", "README.md"
CALIBRATION = "calibration.json"


def saved_config(model: OVMultiLabelClassifier) -> dict[str, Any]:
    """What `config.json` holds."""
    from transformers import CLIPConfig, SiglipConfig

    from ovml import __version__

    stages = [*model._tower_stages, *model.stages]
    text = model.prompt.text_encoder
    towers = {"vision_config": model.image_encoder.vision_model, "text_config": text.text_model}
    configs = {name: cast(Any, tower).config.to_dict() for name, tower in towers.items()}
    siglip = model.image_encoder.model_type == "siglip"
    clip = SiglipConfig(**configs) if siglip else CLIPConfig(**configs, projection_dim=text.embed_dim)
    ovml = {
        "format": FORMAT,
        "version": __version__,
        "base_model": base_model(model),
        **{part: describe(getattr(model, part), base) for part, base in PARTS.items()},
        "distillation_weight": model.distillation_weight,
        "stages": [describe(stage, Stage) for stage in stages],
        "tower": [describe(stage, Stage) for stage in stages if stage.added],
        "ks": model.hparams.get("ks"),
        "images": model.evaluation.images,
    }
    dtype = str(next(iter(_weights(model).values())).dtype).removeprefix("torch.")
    plain: dict[str, Any] = json.loads(clip.to_json_string(use_diff=False))
    return {**plain, "architectures": ["SiglipModel" if siglip else "CLIPModel"], "dtype": dtype, "ovml": ovml}


def _weights(model: OVMultiLabelClassifier) -> dict[str, Tensor]:
    """All that the model's scores depend on: the CLIP's weights under its own names, then the parts'."""
    encoders = (model.image_encoder, model.prompt.text_encoder)
    states = {name: plain_state(module) for encoder in encoders for name, module in encoder.named_children()}
    states |= {part: getattr(model, part).state_dict() for part in PARTS}
    return {
        f"{name}.{key}": value.detach()
        for name, state in states.items()
        for key, value in state.items()
        if not (name == "prompt" and key.startswith("text_encoder."))
    }


def write_model(model: OVMultiLabelClassifier, config: dict[str, Any], folder: Path) -> None:
    """Write all but the model card into a folder.

    Args:
        model: The model.
        config: What `saved_config` gave.
        folder: An empty one.
    """
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    weights = {name: value.cpu().clone().contiguous() for name, value in _weights(model).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model.prompt.text_encoder.tokenizer.save_pretrained(folder)
    spec = model.image_spec
    square = {"height": spec.size, "width": spec.size}
    settings: dict[str, Any] = {
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "resample": spec.resample,
    }
    if spec.squash:
        processor = SiglipImageProcessorPil(size=square, **settings)
    else:
        processor = CLIPImageProcessorPil(size={"shortest_edge": spec.short_side}, crop_size=square, **settings)
    processor.save_pretrained(folder)
    if model.vocabulary is not None:
        (folder / LABELS).write_text(json.dumps(model.vocabulary.to_dict(), indent=1, ensure_ascii=False), "utf-8")
    if model.calibration is not None:
        (folder / CALIBRATION).write_text(json.dumps(model.calibration.to_dict(), ensure_ascii=False), "utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors lets nobody else read it


def put_in_place(aside: Path, target: Path, keep_card: bool) -> None:
    """Rename a complete folder into its place; what stood there may be an older save and nothing else."""
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


def base_model(model: OVMultiLabelClassifier) -> str | None:
    """The Hub name of the CLIP that the model began as, where it is known."""
    name = model._hub_base_model or model.hparams.get("clip")
    known = isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    return name if known else None


def read_model(cls: Any, folder: Path, saved: Any, parts: Mapping[str, Any]) -> Any:
    """Make the model that a folder holds, in evaluation mode.

    Args:
        cls: `OVMultiLabelClassifier` or a subclass.
        folder: What `write_model` filled.
        saved: What its `config.json` has under the key `ovml`.
        parts: Arguments that take the place of what was saved.

    Raises:
        UserError: A file is missing or broken, weights are missing or too many, or a part cannot be made.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    kwargs = {**_saved_arguments(folder, saved, parts), **parts}
    replaced = tuple(f"{part}." for part in PARTS if part in parts)
    try:
        with safe_open(file, "pt") as opened:
            names = {name for name in opened.keys() if not name.startswith(replaced)}  # noqa: SIM118
            own = {n: opened.get_tensor(n).clone() for n in names if n.partition(".")[0] in PARTS}
            with _quiet_transformers():
                model = cls(str(folder), **kwargs)
            if kwargs["stages"] == []:  # what stages put into the tower is there without them
                model._tower_stages = _stages(folder, saved.get("tower", []))
                for stage in model._tower_stages:
                    stage.prepare(model)
                model.image_encoder.requires_grad_(False)
            kinds = {name for stage in (*model._tower_stages, *model.stages) for name in stage.added}
            added = {n: opened.get_tensor(n).clone() for n in names if kinds & set(n.split("."))}
        wanted = {name for name in _weights(model) if not name.startswith(replaced)}
        if names != wanted:
            lacks = sorted(wanted - names)
            what = f"lacks {lacks[0]!r}" if lacks else f"has {min(names - wanted)!r}, which no part takes"
            raise UserError(f"{file}: {what}; the folder is not as save_pretrained wrote it, save or download it again")
        model.image_encoder.load_state_dict(added, strict=False, assign=True)
        for part in PARTS:
            state = {n.partition(".")[2]: value for n, value in own.items() if n.partition(".")[0] == part}
            if state:
                getattr(model, part).load_state_dict(state, strict=False, assign=True)  # keeps their precision
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); save or download the model again") from error
    if (folder / CALIBRATION).is_file() and not {"head", "prompt"} & set(parts):
        model.calibration = Calibration.from_dict(read_json(folder / CALIBRATION), str(folder / CALIBRATION))
    model._hub_base_model = saved.get("base_model")
    return model.eval()


def _saved_arguments(folder: Path, saved: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The classifier's arguments that the files hold, of those that the caller did not give."""
    file = folder / CONFIG
    keys = (*PARTS, "distillation_weight", "stages", "ks", "images")
    if not isinstance(saved, dict) or saved.get("format", FORMAT) > FORMAT or not set(keys) <= set(saved):
        version = saved.get("version") if isinstance(saved, dict) else None
        raise UserError(f"{file}: not a model that this ovml can read (written by ovml {version}); upgrade ovml")
    arguments = {key: saved[key] for key in keys if key not in parts}
    for part, base in PARTS.items():
        if part in arguments:
            arguments[part] = build(arguments[part], base, f"{file}, {part}")
    if "stages" in arguments:
        arguments["stages"] = _stages(folder, saved["stages"])
    if "labels" not in parts and (folder / LABELS).is_file():
        arguments["labels"] = LabelVocabulary.from_any(read_json(folder / LABELS))
    return arguments


def _stages(folder: Path, described: Sequence[Any]) -> list[Stage]:
    return [build(stage, Stage, f"{folder / CONFIG}, stages") for stage in described]


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
    """Leave out that transformers finds the parts' weights unexpected."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
