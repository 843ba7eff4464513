"""Reading of a CLIP's or SigLIP's `config.json`: only the settings that shape the towers, each of them checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from typing_extensions import TypedDict

from ovml.utils.errors import UserError, check_positive, check_share
from ovml.utils.schema import check_type, short

SIZES = ("_size", "_layers", "_heads", "_channels", "_embeddings", "_eps")
"""Ends of the names of settings that are above 0."""


class TowerConfig(TypedDict, total=False):
    """The settings that both towers have."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    attention_dropout: float


class VisionConfig(TowerConfig, total=False):
    """The settings of an image tower."""

    image_size: int
    patch_size: int
    num_channels: int
    vision_use_head: bool


class TextConfig(TowerConfig, total=False):
    """The settings of a text tower."""

    vocab_size: int
    max_position_embeddings: int
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    projection_size: int


class ModelConfig(TypedDict, total=False):
    """The settings of a model; older files repeat those of the towers under another name."""

    vision_config: dict[str, Any] | None
    text_config: dict[str, Any] | None
    vision_config_dict: dict[str, Any] | None
    text_config_dict: dict[str, Any] | None
    projection_dim: int


TOWERS: dict[str, Any] = {
    **dict.fromkeys(("vision_config", "vision_config_dict"), VisionConfig),
    **dict.fromkeys(("text_config", "text_config_dict"), TextConfig),
}


def model_config(settings: Mapping[str, Any]) -> Any:
    """Make a `CLIPConfig` or `SiglipConfig` of the settings of a `config.json`.

    Settings that do not shape the towers are left out: some make transformers use a lot of memory, quantize weights, or
    take other implementations of attention.

    Raises:
        UserError: The model is of another type, or a setting is missing, of another type or out of range.

    >>> model_config({"model_type": "clip", "vision_config": {"patch_size": 16}}).vision_config.patch_size
    16
    >>> model_config({"model_type": "clip", "vision_config": {"patch_size": "16"}})
    Traceback (most recent call last):
    ovml.utils.errors.UserError: vision_config, patch_size must be a whole number; got '16'
    """
    from transformers import CLIPConfig, SiglipConfig

    kind = settings.get("model_type")
    if kind == "siglip2":
        raise UserError(
            "a SigLIP 2 of any resolution (NaFlex), which ovml does not run; take one of a fixed resolution, "
            "such as google/siglip2-base-patch16-224"
        )
    if kind not in ("clip", "siglip"):
        raise UserError(
            f"a checkpoint of type {short(kind)}; ovml needs a CLIPModel ('clip') or SiglipModel ('siglip')"
        )
    check_type(settings, ModelConfig, "settings")
    known: dict[str, Any] = {key: settings[key] for key in settings if key in ("projection_dim", *TOWERS)}
    for name in known.keys() & TOWERS.keys():
        known[name] = None if known[name] is None else _tower_config(known[name], name)
    if kind == "siglip":  # reads texts at their last position; transformers warns of its own defaults, which are CLIP's
        known["text_config"] = {**(known.get("text_config") or {}), "bos_token_id": None, "eos_token_id": None}
    config = CLIPConfig(**known) if kind == "clip" else SiglipConfig(**known)
    text = config.text_config
    if kind == "clip" and text.eos_token_id not in range(text.vocab_size):
        raise UserError(
            f"text_config, eos_token_id must be a token of the vocabulary, from 0 to {text.vocab_size - 1}; got "
            f"{text.eos_token_id}"
        )
    return config


def _tower_config(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a tower, checked."""
    from transformers.activations import ACT2FN

    known = {key: settings[key] for key in get_type_hints(TOWERS[where]) if key in settings}
    check_type(known, TOWERS[where], where)
    check_positive(where, **{key: value for key, value in known.items() if key.endswith(SIZES)})
    check_share(where, attention_dropout=known.get("attention_dropout", 0))
    if (activation := known.get("hidden_act", "gelu")) not in ACT2FN:
        raise UserError(
            f"{where}: hidden_act must be an activation that transformers has, such as 'gelu'; got {short(activation)}"
        )
    return known
