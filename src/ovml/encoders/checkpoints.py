"""CLIP and SigLIP checkpoints by name: the Hub's, a folder's, or the embedded `ovml-demo`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ovml.encoders import open_clip
from ovml.encoders.config import model_config
from ovml.encoders.image_processor import ImageProcessor
from ovml.utils.errors import UserError, error_at, first_line
from ovml.utils.hub import check_hub_name
from ovml.utils.resources import DEFAULT as DEFAULT
from ovml.utils.resources import DEMO as DEMO
from ovml.utils.resources import RESOURCES

WEIGHTS = "model.safetensors"
MOST_SHOWN = 300
"""Characters of a name and of a library's message in an error."""
DOWNLOAD_AGAIN = "save or download the checkpoint again"
SAVE_PRETRAINED = "write the folder with the model's, tokenizer's and image processor's save_pretrained"


def checkpoint_path(name: str) -> str:
    """The path of `ovml-demo` inside the package; any other name as it is."""
    return str(RESOURCES / DEMO) if name == DEMO else name


def load_clip(name: str) -> Any:
    """Load a `CLIPModel` or `SiglipModel` in evaluation mode, in float32 whatever the file has.

    SigLIP 2's checkpoints of one resolution are `SiglipModel`s too. The configuration is compared with the shapes of
    the weights before memory is taken. Weights are safetensors; OpenCLIP's may be a `.bin`, read as plain tensors.

    Args:
        name: `ovml-demo`, a folder written by `save_pretrained` or OpenCLIP, or a name on the Hugging Face Hub.

    Raises:
        UserError: Nothing of that name can be loaded, it is a checkpoint of another type, or it is damaged.
    """
    import torch
    import transformers

    config, own = _read_config(name)
    # transformers imports a class when it is asked for.
    model_class = transformers.SiglipModel if config.model_type == "siglip" else transformers.CLIPModel
    if own is not None:
        return _load_open_clip(name, model_class, config)
    path = checkpoint_path(name)
    with _checkpoint_errors(name, WEIGHTS):
        if shapes := _weight_shapes(
            path
        ):  # else transformers finds other names of the file, or says that there is none
            _check_shapes(shapes, model_class, config, f"{name}: {WEIGHTS}", "config.json")
        options = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
        return model_class.from_pretrained(path, config=config, **options).eval()


def _load_open_clip(name: str, model_class: Any, config: Any) -> Any:
    """Load a model from OpenCLIP's file of weights."""
    import torch

    file = _file_of(checkpoint_path(name), *open_clip.WEIGHTS)
    if file is None:
        raise UserError(
            f"{name}: has {open_clip.CONFIG}, but neither {' nor '.join(open_clip.WEIGHTS)}; {DOWNLOAD_AGAIN}"
        )
    with _checkpoint_errors(name, os.path.basename(file), DOWNLOAD_AGAIN):
        weights, where = open_clip.read_weights(file), f"{name}: {os.path.basename(file)}"
        shapes = {key: list(value.shape) for key, value in weights.items()}
        expected = _check_shapes(shapes, model_class, config, where, open_clip.CONFIG)
        if unknown := next((key for key in shapes if key not in expected), None):
            raise UserError(f"{where} has {unknown[:MOST_SHOWN]!r}, which a CLIPModel lacks; take another checkpoint")
        weights = {key: value.to(torch.float32, copy=True).contiguous() for key, value in weights.items()}
        return model_class.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32).eval()


def _read_config(name: str) -> tuple[Any, open_clip.Settings | None]:
    """The configuration of a checkpoint, and OpenCLIP's settings if transformers has none of it."""
    from transformers import PreTrainedConfig

    path = checkpoint_path(name)
    with _checkpoint_errors(name, "config.json"):
        try:
            settings, problem = PreTrainedConfig.get_config_dict(path)[0], OSError("the file is missing or empty")
        except OSError as error:
            settings, problem = {}, error
        if "model_type" not in settings and (file := _file_of(path, open_clip.CONFIG)):
            own = open_clip.read_settings(file, name)
            return open_clip.clip_config(own, name), own
        if not settings:
            raise problem
        with error_at(f"{name}, config.json"):
            return model_config(settings), None


def _file_of(path: str, *names: str) -> str | None:
    """The first of some files that a folder, or a repository on the Hub, has."""
    from transformers.utils import cached_file

    for name in names:
        try:
            return str(cached_file(path, name))
        except OSError:
            continue
    return None


def _check_shapes(
    shapes: Mapping[str, Sequence[int]], model_class: Any, config: Any, where: str, asking: str
) -> Mapping[str, Sequence[int]]:
    """Check that weights have every tensor that a configuration asks for, in its shape.

    Args:
        shapes: Shapes by name.
        model_class: The class of the model.
        config: Its configuration.
        where: What to call the file of the weights in an error.
        asking: The configuration's file.

    Returns:
        The shapes that the configuration asks for, by name.
    """
    import torch

    for tower in (config.vision_config, config.text_config):
        if tower.num_hidden_layers > len(shapes):
            raise UserError(
                f"{where} has {len(shapes):,} tensors, and {asking} asks for {tower.num_hidden_layers:,} blocks; "
                f"{DOWNLOAD_AGAIN}"
            )
    with torch.device("meta"):  # shapes without memory
        expected = {key: list(value.shape) for key, value in model_class(config).state_dict().items()}
    for key, shape in expected.items():
        if shapes.get(key, shape if key.startswith("logit_") else None) != shape:
            found = f"has {key!r} as {shapes[key]}" if key in shapes else f"lacks {key!r}"
            raise UserError(f"{where} {found}, {asking} asks for {shape}; {DOWNLOAD_AGAIN}")
    return expected


def _weight_shapes(path: str) -> dict[str, list[int]]:
    """The shapes of a checkpoint's tensors by name, from the headers of its files; none if there are no such files."""
    from safetensors import safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    try:
        files = [cached_file(path, WEIGHTS)]
    except OSError:
        try:
            files, _ = get_checkpoint_shard_files(path, cached_file(path, SAFE_WEIGHTS_INDEX_NAME))
        except OSError:
            return {}
    shapes: dict[str, list[int]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            shapes |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
    return shapes


def load_tokenizer(name: str, config: Any = None) -> Any:
    """Load the tokenizer of a checkpoint, or of a folder without a model; see `load_image_processor`."""
    from transformers import AutoTokenizer, PreTrainedConfig

    path = checkpoint_path(name)
    if config is None:
        try:
            config, _ = _read_config(name)
        except UserError:  # the files of the tokenizer may do without
            config = PreTrainedConfig()
    with _checkpoint_errors(name, "tokenizer"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, config=config, trust_remote_code=False)
        except ImportError as error:  # transformers says which package, over many lines
            raise UserError(
                f"{name}: its tokenizer needs more packages; pip install sentencepiece protobuf, or give a folder with "
                "a tokenizer.json"
            ) from error
        (found,) = tokenizer(["a"], verbose=False)["input_ids"]  # damaged ones may raise any error here
        if not set(found) - set(tokenizer.all_special_ids):  # transformers makes an empty one where files are missing
            raise UserError(
                f"{name}: its tokenizer knows no letters; get tokenizer.json, or vocab.json and merges.txt, again; "
                f"with CLIP's 49,408 tokens, those of {DEFAULT} serve"
            )
        end = config.text_config.eos_token_id if config.model_type == "clip" else None
        if end not in (None, 2, found[-1]):  # 2 stands in old configurations whatever the token is
            raise UserError(
                f"{name}: its tokenizer ends texts with token {found[-1]}, and the text tower reads token {end}; take "
                "the tokenizer that belongs to the checkpoint"
            )
    return tokenizer


def load_image_processor(name: str) -> ImageProcessor:
    """Load a checkpoint's image processor: how images are resized, cropped and normalized.

    Args:
        name: See `load_clip`.

    Raises:
        UserError: Nothing of that name can be loaded, images are not square, or a setting is damaged.

    >>> load_image_processor("ovml-demo").size
    96
    """
    import transformers

    config, own = _read_config(name)
    if own is not None:
        return open_clip.image_processor(own, config.vision_config.image_size, name)
    path = checkpoint_path(name)
    with _checkpoint_errors(name, "preprocessor_config.json"):
        settings, _ = transformers.CLIPImageProcessorPil.get_image_processor_dict(path, trust_remote_code=False)
        kind = settings.get("image_processor_type", "")
        squash = "Siglip" in kind or (config.model_type == "siglip" and "CLIP" not in kind)
        loader = transformers.SiglipImageProcessorPil if squash else transformers.CLIPImageProcessorPil
        processor = loader.from_pretrained(path, trust_remote_code=False)
        where = f"{name}, preprocessor_config.json"
        return ImageProcessor.of_transformers(processor, config.vision_config.image_size, where)


@contextmanager
def _checkpoint_errors(name: str, file: str, advice: str = SAVE_PRETRAINED) -> Iterator[None]:
    """Turn the errors of transformers into a `UserError`; which it raises for a damaged file is not documented."""
    path = checkpoint_path(name)
    check_hub_name(name)
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        name, reason = name[:MOST_SHOWN], first_line(error)[:MOST_SHOWN]
        if not isinstance(error, (OSError, ValueError)):
            reason = f"{type(error).__name__}: {reason}"
        if os.path.isdir(path):
            raise UserError(f"{name}: not a complete CLIP checkpoint ({file}: {reason}); {advice}") from error
        if name.count("/") > 1 or "\\" in name or name.startswith("."):  # which no name on the Hub has
            raise UserError(f"{name}: no such folder; check the path") from error
        raise UserError(
            f"{name}: no such checkpoint here, and the Hugging Face Hub did not give it ({reason}); "
            f"check the name and the network, give a local folder, or use {DEMO!r}, which is part of ovml"
        ) from error
