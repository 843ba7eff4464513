"""Files of label embeddings, to score images without the text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write, write_errors
from ovml.vocabulary import check_names

FORMAT = "ovml-label-embeddings"
TENSOR = "label_embeds"


class LabelEmbeddings(NamedTuple):
    """Label names with their embeddings.

    Attributes:
        labels: `L` names.
        embeds: `[L, D]`, or pairs `[L, 2, D]`, float32, as heads take them: not L2-normalised.
        metadata: Other text of the file by name.
    """

    labels: tuple[str, ...]
    embeds: Tensor
    metadata: Mapping[str, str]


def write_label_embeddings(
    path: str | Path, labels: Sequence[str], embeds: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with the tensor `label_embeds` and, in its metadata, the names as JSON under `labels`.

    Args:
        path: The file; missing folders are made.
        labels: `L` names.
        embeds: `[L, D]`, or pairs `[L, 2, D]`.
        metadata: Other text by name.

    Raises:
        UserError: The numbers of names and rows differ, or the file cannot be written.
    """
    from safetensors.torch import save

    if embeds.ndim not in (2, 3) or len(embeds) != len(labels):
        raise UserError(f"{path}: {len(labels)} labels need as many rows [L, D]; got {list(embeds.shape)}")
    if embeds.ndim == 3 and embeds.shape[1] != 2:
        raise UserError(f"{path}: several texts of a label cannot be written; take a prompt with pool='mean'")
    names = json.dumps(list(labels), ensure_ascii=False)
    tensors = {TENSOR: embeds.detach().float().cpu().contiguous()}
    content = save(tensors, {**(metadata or {}), "format": FORMAT, "labels": names})
    with write_errors(path), atomic_write(path) as beside:
        beside.write_bytes(content)  # safetensors' save_file would make it unreadable for others


def read_label_embeddings(path: str | Path) -> LabelEmbeddings:
    """Read a file that `write_label_embeddings` wrote.

    Raises:
        UserError: The file is missing or has another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.pop("format", None) != FORMAT:
                raise ValueError("other safetensors")
            labels = check_names(json.loads(metadata.pop("labels")), where=str(path))
            embeds: Tensor = file.get_tensor(TENSOR)
            if embeds.ndim not in (2, 3) or len(embeds) != len(labels) or embeds.dtype != torch.float32:
                raise ValueError(f"{len(labels)} labels, {embeds.dtype} {list(embeds.shape)}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}: no label embeddings ({reason}); give a file that ovml embed-labels wrote") from error
    return LabelEmbeddings(labels, embeds, metadata)
