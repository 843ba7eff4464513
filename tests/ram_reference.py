"""The small random CLIP of RAM's reference numbers, its tokenizer, and ovml's parts with the reference's weights."""

from __future__ import annotations

from typing import Any

import torch
from reference_clip import loaded
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ovml.heads.sinkhorn import batch_sinkhorn

TOLERANCE = 1e-4
"""Of a tensor's largest entry; the reference's own advice."""


def close(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Check a tensor to a share of the largest entry of the expected one."""
    difference = (got.detach().float() - expected).abs().max()
    assert got.shape == expected.shape
    assert difference <= tolerance * expected.abs().max(), float(difference / expected.abs().max())


def ram_clip(golden: dict[str, Tensor], settings: dict[str, Any]) -> CLIPModel:
    common = {"hidden_act": "quick_gelu"}
    vision, text = settings["vision_width"], settings["text_width"]
    config = CLIPConfig(
        vision_config={
            **common, "hidden_size": vision, "num_hidden_layers": settings["vision_layers"],
            "num_attention_heads": settings["vision_heads"], "intermediate_size": 4 * vision,
            "image_size": settings["image_size"], "patch_size": settings["patch_size"],
        },
        text_config={
            **common, "hidden_size": text, "num_hidden_layers": settings["text_layers"],
            "num_attention_heads": settings["text_heads"], "intermediate_size": 4 * text, "vocab_size": 49408,
            "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
        },
        projection_dim=settings["projection"],
    )  # fmt: skip
    return loaded(config, golden, "text")


class RAMTokenizer:
    """Gives the reference's ids for "A photo of a {name}."; of other texts it knows "a" alone."""

    def __init__(self, golden: dict[str, Tensor], names: list[str]) -> None:
        rows = [row[: row.index(49407) + 1] for row in golden["text.token_ids"].tolist()]
        self.ids = {f"A photo of a {name}.": row for name, row in zip(names, rows, strict=True)}
        self.ids["a"] = [49406, 320, 49407]

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[Any]]]:
        ids = [self.ids[text] for text in texts]
        spans = [[(0, 0), *[(0, 1)] * (len(row) - 2), (0, 0)] for row in ids]
        return {"input_ids": ids, "offset_mapping": spans}


def set_tower(encoder: Any, golden: dict[str, Tensor], blocks: list[int]) -> None:
    """Give an adapted vision tower the reference's adapters and tokens."""
    for place, block in enumerate(blocks):
        prefix = f"adapter.{block}."
        state = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
        missing, unexpected = encoder.local_path.adapters[place].load_state_dict(state, strict=False)
        assert not unexpected
        assert all(name.endswith("num_batches_tracked") for name in missing)
        encoder.vision_model.encoder.layers[block].adapt_tokens.data.copy_(golden[f"tokens.vision.{block}"])


def iterations_of(cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float, plan: Tensor) -> int:
    """The number of Sinkhorn's iterations behind a plan: the first limit that changes nothing any more."""
    found = 1
    while not torch.equal(batch_sinkhorn(cost, rows, columns, epsilon, found), plan):
        found += 1
    return found


def possible_iterations(*problem: Tensor) -> range:
    """Numbers of iterations that stop within 0.2 % of the threshold, which is about what float32 leaves open."""
    ends = [iterations_of(*problem, batch_sinkhorn(*problem, tolerance=factor * 1e-3)) for factor in (1.002, 0.998)]
    return range(ends[0], ends[1] + 1)
