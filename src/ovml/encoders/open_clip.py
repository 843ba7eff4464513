"""Checkpoints as OpenCLIP saves them, read as a `CLIPModel`: their configuration, weights and preprocessing.

A folder has `open_clip_config.json`, a file of weights under OpenCLIP's names, and the files of a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Required, TypedDict

from ovml.encoders.config import model_config
from ovml.encoders.image_processor import ImageProcessor
from ovml.utils.errors import UserError, check_positive, error_at, first_line
from ovml.utils.files import read_text
from ovml.utils.json import load_json
from ovml.utils.schema import check_type, short

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of the file of weights, best first."""
DOWNLOAD_AGAIN = "download the checkpoint again"


class VisionSettings(TypedDict, total=False):
    """The settings of an image tower that shape a `CLIPModel`, or say that it is another tower."""

    layers: int | list[int]
    width: int
    head_width: int
    mlp_ratio: float
    patch_size: int | list[int] | None
    image_size: int | list[int]
    timm_model_name: str | None


class TextSettings(TypedDict, total=False):
    """The same of a text tower."""

    layers: int
    width: int
    heads: int
    mlp_ratio: float
    context_length: int
    vocab_size: int
    eos_id: int | None
    hf_model_name: str | None


class ModelSettings(TypedDict, total=False):
    """The settings of a model."""

    embed_dim: Required[int]
    vision_cfg: Required[VisionSettings]
    text_cfg: Required[TextSettings]
    quick_gelu: bool


class PreprocessSettings(TypedDict, total=False):
    """How images are prepared; the size is the image tower's."""

    mean: list[float] | None
    std: list[float] | None
    interpolation: str | None
    resize_mode: str | None


class Settings(TypedDict, total=False):
    """The content of `open_clip_config.json`."""

    model_cfg: Required[ModelSettings]
    preprocess_cfg: PreprocessSettings | None


_PARTS = (
    *("attentional_pool", "no_ln_pre", "final_ln_after_pool", "embed_cls", "no_causal_mask", "ls_init_value"),
    *("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "act_kwargs"),
    *("norm_kwargs", "proj_bias", "tokenizer_type", "tokenizer_mode", "tokenizer_kwargs"),
)
PLAIN: dict[str, Sequence[str]] = {
    **dict.fromkeys(_PARTS, ()),
    "block_type": ("default",),
    "text_arch": ("clip",),
    "proj_type": ("linear",),
    "pool_type": ("tok", "argmax", "eos"),
}
"""What settings of a tower may be, besides empty or false, for a `CLIPModel` to compute the same."""

NAMES = {
    r"visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"visual\.class_embedding": "vision_model.embeddings.class_embedding",
    r"visual\.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    r"visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"visual\.ln_post\.": "vision_model.post_layernorm.",
    r"visual\.proj": "visual_projection.weight",
    r"(text\.)?token_embedding\.": "text_model.embeddings.token_embedding.",
    r"(text\.)?positional_embedding": "text_model.embeddings.position_embedding.weight",
    r"(text\.)?transformer\.resblocks\.": "text_model.encoder.layers.",
    r"(text\.)?ln_final\.": "text_model.final_layer_norm.",
    r"(text\.)?text_projection": "text_projection.weight",
}
"""Beginnings of OpenCLIP's names of weights, and transformers' names; `text.` is there where `custom_text` is true."""
IN_BLOCKS = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
UNUSED = ("logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size")
"""Names of tensors that do not change rankings, or repeat the configuration."""


def read_settings(file: str, name: str) -> Settings:
    """Read and check `open_clip_config.json`.

    Args:
        file: The file.
        name: The checkpoint's name, for errors.

    Raises:
        UserError: It is damaged, or a setting has a wrong type.
    """
    try:
        settings: Settings = load_json(read_text(file, "model's", "JSON"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}, {CONFIG}: cannot be read ({first_line(error)}); {DOWNLOAD_AGAIN}") from error
    check_type(settings, Settings, f"{name}, {CONFIG}")
    return settings


def clip_config(settings: Settings, name: str) -> Any:
    """Make a `CLIPConfig` of OpenCLIP's settings.

    Args:
        settings: Output of `read_settings`.
        name: The checkpoint's name, for errors.

    Raises:
        UserError: The model is none that a `CLIPModel` can compute, or a number is out of range.

    >>> towers = {"vision_cfg": {"width": 128, "patch_size": 32}, "text_cfg": {"width": 64, "heads": 1}}
    >>> config = clip_config({"model_cfg": {"embed_dim": 32, **towers}}, "my-clip")
    >>> config.vision_config.num_attention_heads, config.text_config.hidden_act, config.projection_dim
    (2, 'gelu', 32)
    """
    model = settings["model_cfg"]
    with error_at(f"{name}, {CONFIG}"):
        _check_towers(model)
        vision, text = model["vision_cfg"], model["text_cfg"]
        vocabulary = text.get("vocab_size", 49408)
        end = text.get("eos_id")
        return model_config(
            {
                "model_type": "clip",
                "projection_dim": model["embed_dim"],
                "vision_config": {
                    **_tower(model, "vision_cfg", 768, vision.get("width", 768) // vision.get("head_width", 64)),
                    "patch_size": _side(vision, "patch_size", 16),
                    "image_size": _side(vision, "image_size", 224),
                },
                "text_config": {
                    **_tower(model, "text_cfg", 512, text.get("heads", 8)),
                    "vocab_size": vocabulary,
                    "max_position_embeddings": text.get("context_length", 77),
                    "bos_token_id": None,
                    # OpenCLIP reads the text at the token with the largest number, or at this one.
                    "eos_token_id": vocabulary - 1 if end is None else end,
                },
            }
        )


def _check_towers(model: ModelSettings) -> None:
    """Refuse models whose towers are none of a `CLIPModel`."""
    check_positive("model_cfg", embed_dim=model["embed_dim"])
    timm, hf = model["vision_cfg"].get("timm_model_name"), model["text_cfg"].get("hf_model_name")
    other = None
    if "multimodal_cfg" in model:
        other = "a CoCa, which has a text decoder"
    elif timm:
        other = f"its image tower is timm's {short(timm)}"
    elif hf:
        other = f"its text tower is {short(hf)} of transformers"
    elif isinstance(model["vision_cfg"].get("layers"), list):
        other = "its image tower is a ResNet"
    if other:
        siglip = "SigLIP's own checkpoint, such as google/siglip2-base-patch16-224"
        advice = siglip if timm and "siglip" in timm.lower() else "one with OpenCLIP's own ViT and text tower"
        raise UserError(f"{other}; ovml does not run this, take {advice}")
    for tower in ("vision_cfg", "text_cfg"):
        settings: Mapping[str, Any] = model[tower]  # type: ignore[literal-required]
        for key, value in settings.items():
            if key in PLAIN and value and value not in PLAIN[key]:
                raise UserError(f"{tower}, {key} {short(value)}: a CLIPModel has no such part; take another checkpoint")
        numbers = ("layers", "width", "heads", "head_width", "mlp_ratio")
        check_positive(tower, **{key: settings.get(key) for key in numbers})


def _tower(model: ModelSettings, tower: str, width: int, heads: int) -> dict[str, Any]:
    settings: Mapping[str, Any] = model[tower]  # type: ignore[literal-required]
    width = settings.get("width", width)
    if heads < 1 or width % heads:
        raise UserError(f"{tower}: width must be a multiple of the number of heads; got {width} and {heads}")
    return {
        "hidden_size": width,
        "intermediate_size": int(width * settings.get("mlp_ratio", 4.0)),
        "num_hidden_layers": settings.get("layers", 12),
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }


def _side(settings: Mapping[str, Any], key: str, default: int) -> int:
    """Side of a square, given as one number or two."""
    value = settings.get(key, default)
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1 or None in sides:
        raise UserError(f"vision_cfg: {key} must be one number, of a square; got {short(value)}")
    return int(sides.pop())


def image_processor(settings: Settings, size: int, name: str) -> ImageProcessor:
    """Make the image processor of OpenCLIP's settings.

    Args:
        settings: Output of `read_settings`.
        size: Height and width that the image tower takes.
        name: The checkpoint's name, for errors.

    Raises:
        UserError: Images are padded, or a setting is out of range.
    """
    given: dict[str, Any] = {
        key: value for key, value in (settings.get("preprocess_cfg") or {}).items() if value is not None
    }
    mode, filter_name = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
    with error_at(f"{name}, {CONFIG}, preprocess_cfg"):
        if mode not in ("shortest", "squash"):
            raise UserError(f"resize_mode {short(mode)}: ovml crops images ('shortest') or squashes them ('squash')")
        if filter_name not in ("bicubic", "bilinear", "random"):
            raise UserError(f"interpolation {short(filter_name)}: must be 'bicubic' or 'bilinear'")
        normalization: dict[str, Any] = {key: tuple(given[key]) for key in ("mean", "std") if key in given}
        resample = 2 if filter_name == "bilinear" else 3  # 'random' is of the training
        crops = mode == "shortest"  # as torchvision does, which rounds
        return ImageProcessor(size, squash=not crops, resample=resample, round_crop=crops, **normalization)


def read_weights(file: str) -> dict[str, Any]:
    """Read weights under OpenCLIP's names and give them transformers' names; nothing in the file is executed.

    Tensors are views of the file, which takes no memory, in the types that the file has. Unknown ones keep their names.

    Args:
        file: `.safetensors`, or `.bin` as `torch.save` writes it.
    """
    import torch
    from safetensors.torch import load_file

    if file.endswith(".safetensors"):
        state: dict[str, Any] = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        state = state.get("state_dict", state)  # of a training's checkpoint
    weights: dict[str, Any] = {}
    for name, tensor in state.items():
        own = name.removeprefix("module.")  # of a training on several devices
        if not isinstance(tensor, torch.Tensor) or own.rpartition(".")[2] in UNUSED:
            continue
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name!r} has fewer values than its shape {list(tensor.shape)}")
        weights |= _renamed(own, tensor)
    return weights


def _renamed(name: str, tensor: Any) -> dict[str, Any]:
    """The tensors of a `CLIPModel` in one of OpenCLIP's."""
    key = next((key + name[found.end() :] for start, key in NAMES.items() if (found := re.match(start, name))), name)
    for ours, theirs in IN_BLOCKS.items():
        key = key.replace(ours, theirs)
    if ".in_proj_" in key:  # queries, keys and values in one
        return {
            key.replace("in_proj_", f"{c}_proj."): part for c, part in zip("qkv", tensor.tensor_split(3), strict=True)
        }
    if key in ("visual_projection.weight", "text_projection.weight"):
        tensor = tensor.t()
    return {key: tensor.reshape(()) if key == "logit_scale" else tensor}
