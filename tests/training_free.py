"""The small random CLIP of the reference numbers of training-free methods, and its images."""

from __future__ import annotations

from typing import Any

from reference_clip import loaded
from torch import Tensor, tensor
from transformers import CLIPConfig, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def reference_clip(golden: dict[str, Tensor]) -> CLIPModel:
    """ViT of 12 blocks, width 64, two heads, 224 px in patches of 16; text of 2 blocks, width 64."""
    shared = {"hidden_size": 64, "intermediate_size": 256, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = {"num_hidden_layers": 12, "num_attention_heads": 2, "image_size": 224, "patch_size": 16}
    text = {"num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": 49408, "max_position_embeddings": 77}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    config = CLIPConfig(vision_config={**shared, **vision}, text_config={**shared, **text}, projection_dim=48)
    return loaded(config, golden, "token")


def pixels(images: Tensor) -> Tensor:
    """Normalised pixel values of stored images, whose pixels stand for squares of 8 by 8."""
    large = images.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2).float() / 255
    return (large - tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)) / tensor(OPENAI_CLIP_STD).view(3, 1, 1)


def hidden_states(tower: Any, images: Tensor) -> list[Tensor]:
    """The input of each block, then the output of the last one."""
    states = [tower.pre_layrnorm(tower.embeddings(images))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    return states
