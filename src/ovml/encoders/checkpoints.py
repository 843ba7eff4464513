"""CLIP and SigLIP checkpoints by name: the Hub's, a folder's, or the embedded `ovml-demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ovml.encoders.image_processor import ImageProcessor
from ovml.utils.errors import UserError, first_line
from ovml.utils.resources import DEFAULT as DEFAULT
from ovml.utils.resources import DEMO as DEMO
from ovml.utils.resources import RESOURCES


def checkpoint_path(name: str) -> str:
    """The path of `ovml-demo` inside the package; any other name as it is."""
    return str(RESOURCES / DEMO) if name == DEMO else name


def load_clip(name: str) -> Any:
    """Load a `CLIPModel` or `SiglipModel` (safetensors only) in evaluation mode, in float32 whatever the file has.

    SigLIP 2's checkpoints of one resolution are `SiglipModel`s too.

    Args:
        name: `ovml-demo`, a folder written by `save_pretrained`, or a name on the Hugging Face Hub.

    Raises:
        UserError: Nothing of that name can be loaded, or it is a checkpoint of another type.
    """
    import torch
    import transformers

    config = _load_config(name)
    # transformers imports a class when it is asked for.
    model_class = transformers.SiglipModel if config.model_type == "siglip" else transformers.CLIPModel
    return _load(model_class.from_pretrained, name, config=config, use_safetensors=True, dtype=torch.float32).eval()


def _load_config(name: str) -> Any:
    from transformers import AutoConfig

    config = _load(AutoConfig.from_pretrained, name)
    if config.model_type == "siglip2":
        raise UserError(
            f"{name}: a SigLIP 2 of any resolution (NaFlex), which ovml does not run; take one of a fixed resolution, "
            "such as google/siglip2-base-patch16-224"
        )
    if config.model_type not in ("clip", "siglip"):
        raise UserError(
            f"{name}: a checkpoint of type {config.model_type!r}; ovml needs a CLIPModel ('clip') or SiglipModel "
            "('siglip')"
        )
    return config


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a checkpoint; arguments and errors as for `load_clip`."""
    from transformers import AutoTokenizer

    try:
        return _load(AutoTokenizer.from_pretrained, name)
    except ImportError as error:  # transformers says which package, over many lines
        raise UserError(
            f"{name}: its tokenizer needs more packages; pip install sentencepiece protobuf, or give a folder with a "
            "tokenizer.json"
        ) from error


def load_image_processor(name: str, config: Any = None) -> ImageProcessor:
    """Load a checkpoint's image processor: how images are resized, cropped and normalized.

    Args:
        name: See `load_clip`.
        config: The checkpoint's configuration, if it is loaded already.

    Raises:
        UserError: Nothing of that name can be loaded, or images are not square.

    >>> load_image_processor("ovml-demo").size
    72
    """
    import transformers

    config = config or _load_config(name)
    settings, _ = _load(transformers.CLIPImageProcessorPil.get_image_processor_dict, name)
    kind = settings.get("image_processor_type", "")
    squash = "Siglip" in kind or (config.model_type == "siglip" and "CLIP" not in kind)
    loader = transformers.SiglipImageProcessorPil if squash else transformers.CLIPImageProcessorPil
    processor, where = _load(loader.from_pretrained, name), f"{name}: preprocessor_config.json"
    return ImageProcessor.of_transformers(processor, config.vision_config.image_size, where)


def _load(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """Call a `from_pretrained` of transformers, and turn its errors into a `UserError`."""
    path = checkpoint_path(name)
    try:
        return load(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        if Path(path).is_dir():
            raise UserError(
                f"{name}: not a complete CLIP checkpoint ({reason}); write the folder with the model's, tokenizer's "
                "and image processor's save_pretrained"
            ) from error
        if name.count("/") > 1 or "\\" in name or name.startswith("."):  # which no name on the Hub has
            raise UserError(f"{name}: no such folder; check the path") from error
        raise UserError(
            f"{name}: no such checkpoint here, and the Hugging Face Hub did not give it ({reason}); "
            f"check the name and the network, give a local folder, or use {DEMO!r}, which is part of ovml"
        ) from error
