"""Import of checkpoints of the published MKT code.

The published code stores weights under the names of OpenAI's CLIP, in two files:

- stage 1 holds the vision tower at the top level (`conv1.weight`, `transformer.resblocks.0.attn.in_proj_weight`, ...),
  its projection as `projection_dist`, and an unused network `projection`;
- stage 2 holds the text tower (`token_embedding.weight`, `transformer.resblocks...`, `text_projection`, ...) with its
  trained token table; after training on several devices every name starts with `module.`.

The configuration follows from the tensors' shapes, so no CLIP has to be loaded for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovml.encoders.checkpoints import DEFAULT, load_clip, load_tokenizer
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ovml.heads import TwoStreamHead
from ovml.model import OpenVocabularyModel
from ovml.saving.checkpoint import load_safely
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Modules of a block with weight and bias, from OpenAI's names to Hugging Face's."""
HEAD_DIM = 64
"""Width of an attention head in all of OpenAI's CLIP models."""


@dataclass(frozen=True)
class TowerFile:
    """The tensors of one tower, with any prefix removed from their names.

    Attributes:
        path: The file.
        tensors: Float32 tensors by OpenAI's names.
    """

    path: Path
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: str | Path, mark: str, what: str) -> TowerFile:
        """Read the tensors of a tower without running pickled code.

        Args:
            path: A file written by `torch.save`: tensors by name, or a mapping with them under `model` or
                `state_dict`.
            mark: A tensor name that only this tower has. Its prefix in the file is taken for the prefix of all names.
            what: Name of the tower in errors.

        Raises:
            UserError: The file is missing, unreadable, needs pickled code, or does not contain the tower.
        """
        tensors = _read(Path(path))
        prefix = next((name.removesuffix(mark) for name in tensors if f".{name}".endswith(f".{mark}")), None)
        if prefix is None:
            some = ", ".join(repr(name) for name in list(tensors)[:2])
            raise UserError(
                f"{path}: no {what} in it: the key {mark!r} is missing (it has {some}, ...); give the published "
                "code's first-stage file as stage1, its second-stage file as stage2"
            )
        own = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
        return cls(Path(path), own)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UserError(f"{self.path}: the key {name!r} is missing; the file is cut short or of another model")
        return self.tensors[name]

    def sized(self, dimensions: int, *names: str) -> Tensor:
        """Return the tensor of the first of these names that the file has.

        Raises:
            UserError: It is missing, or has another number of dimensions, or no values.
        """
        name = next((name for name in names if name in self.tensors), names[0])
        value = self[name]
        if value.ndim != dimensions or not value.numel():
            raise UserError(
                f"{self.path}: {name} is {list(value.shape)}, expected {dimensions} dimensions; the file is damaged or "
                "of another model"
            )
        return value

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        found = (re.match(r"transformer\.resblocks\.(\d+)\.", name) for name in self.tensors)
        return max((int(match[1]) + 1 for match in found if match), default=1)

    def blocks(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the tensors of the transformer blocks by Hugging Face's names, starting with `layers.0.`."""
        for i in range(self.num_layers):
            for kind in ("weight", "bias"):
                stacked = self.sized(1 + (kind == "weight"), f"transformer.resblocks.{i}.attn.in_proj_{kind}")
                for name, value in zip("qkv", stacked.tensor_split(3), strict=True):
                    yield f"layers.{i}.self_attn.{name}_proj.{kind}", value.contiguous()
                for theirs, ours in BLOCK.items():
                    yield f"layers.{i}.{ours}.{kind}", self[f"transformer.resblocks.{i}.{theirs}.{kind}"]


def import_mkt(
    stage1: str | Path,
    stage2: str | Path,
    clip: str | None = None,
    tokenizer: str = DEFAULT,
    labels: LabelVocabulary | None = None,
    top_k: int | None = None,
) -> OpenVocabularyModel:
    """Make a model from the two checkpoint files of the published MKT code.

    Args:
        stage1: File of the first stage, with the vision tower.
        stage2: File of the second stage, with the text tower.
        clip: The CLIP checkpoint that training started from. The published evaluation embeds label names with its
            token table, which is not in the files. Default: label names are embedded with the trained token table, as
            in the published `inference.py`. The two differ, because weight decay shrinks all rows and training
            changes the rows of the template's words.
        tokenizer: Folder or name of the CLIP tokenizer.
        labels: The vocabulary.
        top_k: Number of patches averaged by the head. Default: the share used in training, 16 of 196.

    Returns:
        The model, in evaluation mode. It prepares images as the published evaluation does, with
        ImageNet's mean and standard deviation.

    Raises:
        UserError: A file is missing, unreadable, or not such a checkpoint; or the tokenizer or CLIP cannot be loaded.
    """
    vision = TowerFile.read(stage1, "conv1.weight", "vision tower")
    text = TowerFile.read(stage2, "token_embedding.weight", "text tower")
    model_of_files = build_clip(vision, text)
    words = load_tokenizer(tokenizer)
    table = text["token_embedding.weight"]
    if (last := max(words.get_vocab().values())) >= len(table):
        raise UserError(f"{tokenizer}: has token {last:,}, {stage2} has {len(table):,}; give the CLIP's own tokenizer")
    if clip is not None:
        original = load_clip(clip).text_model.embeddings.token_embedding.weight.detach()
        if original.shape != table.shape:
            sizes = f"{list(original.shape)}, not {list(table.shape)}"
            raise UserError(
                f"{clip}: its token table is {sizes} as in {stage2}; give the CLIP that training began with"
            )
        model_of_files.text_model.embeddings.token_embedding.weight.data.copy_(original)
    head = None if top_k is None else TwoStreamHead(top_k)
    size = model_of_files.config.vision_config.image_size
    # The published evaluation resizes to `int(256 / 224 * input_size)` before it crops.
    published = Preprocessing(size * 256 // 224, mean=IMAGENET_MEAN, std=IMAGENET_STD, round_crop=True)
    model = OpenVocabularyModel(model_of_files, labels, head, preprocessing=published, tokenizer=words)
    context: Any = model.prompt
    context.context.data.copy_(table[context.context_ids])
    model.base_model = clip
    return model.eval()


def build_clip(vision: TowerFile, text: TowerFile) -> Any:
    """Build a `CLIPModel` from two towers; sizes follow from the shapes of their tensors.

    Raises:
        UserError: A key is missing, or shapes do not fit together.
    """
    from transformers import CLIPConfig, CLIPModel

    patches, projection = vision.sized(4, "conv1.weight"), vision.sized(2, "projection_dist", "proj")
    table, positions = text.sized(2, "token_embedding.weight"), text.sized(2, "positional_embedding")
    grid = math.isqrt(len(vision.sized(2, "positional_embedding")) - 1)
    config = CLIPConfig(
        vision_config={
            **_tower_config(vision),
            "image_size": grid * patches.shape[-1],
            "patch_size": patches.shape[-1],
        },
        text_config={
            **_tower_config(text),
            "vocab_size": len(table),
            "max_position_embeddings": len(positions),
            "bos_token_id": len(table) - 2,
            "eos_token_id": len(table) - 1,
        },
        projection_dim=projection.shape[1],
    )
    state = dict(_state(vision, text, projection))
    model = CLIPModel(config)
    own = model.state_dict()
    state["logit_scale"] = torch.tensor(math.log(100.0))  # of OpenAI's models, which MKT starts from
    for name, value in state.items():
        if name not in own or own[name].shape != value.shape:
            fits = list(own[name].shape) if name in own else "no such tensor"
            raise UserError(
                f"{vision.path}, {text.path}: {name} is {list(value.shape)}, expected {fits}; the two files must be of "
                "one CLIP"
            )
    model.load_state_dict(state)
    return model.eval()


def _state(vision: TowerFile, text: TowerFile, projection: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Iterate over all tensors by Hugging Face's names; projections are transposed to weights of `nn.Linear`."""
    yield "visual_projection.weight", projection.T.contiguous()
    yield "text_projection.weight", text.sized(2, "text_projection").T.contiguous()
    yield "vision_model.embeddings.class_embedding", vision["class_embedding"]
    yield "vision_model.embeddings.patch_embedding.weight", vision["conv1.weight"]
    yield "vision_model.embeddings.position_embedding.weight", vision["positional_embedding"]
    yield "text_model.embeddings.token_embedding.weight", text["token_embedding.weight"]
    yield "text_model.embeddings.position_embedding.weight", text["positional_embedding"]
    norms = ((vision, "ln_pre", "vision_model.pre_layrnorm"), (vision, "ln_post", "vision_model.post_layernorm"))
    for tower, theirs, ours in (*norms, (text, "ln_final", "text_model.final_layer_norm")):
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", tower[f"{theirs}.{kind}"]
    for tower, ours in ((vision, "vision_model"), (text, "text_model")):
        for name, value in tower.blocks():
            yield f"{ours}.encoder.{name}", value


def _tower_config(tower: TowerFile) -> dict[str, Any]:
    inner, width = tower.sized(2, "transformer.resblocks.0.mlp.c_fc.weight").shape
    heads = max(1, width // HEAD_DIM)
    if width % heads:
        raise UserError(f"{tower.path}: blocks of width {width}, no multiple of {HEAD_DIM}; give OpenAI's CLIP")
    return {
        "hidden_size": width,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "quick_gelu",
    }


def _is_stored(value: Tensor) -> bool:
    """Whether every value of a tensor is in the file; a few may be repeated to fill the memory."""
    return value.layout is torch.strided and value.untyped_storage().nbytes() >= value.numel() * value.itemsize


def _read(path: Path) -> dict[str, Tensor]:
    advice = "give the .pth file as the published code wrote it"
    content = load_safely(path, "not a file of tensors that can be read without running code in it", advice)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {
        name.removeprefix("module."): value
        for name, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(name, str) and isinstance(value, Tensor) and _is_stored(value)
    }
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name; {advice}")
    return tensors
