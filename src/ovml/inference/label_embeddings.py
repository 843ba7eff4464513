"""Files of label embeddings: what to score images against, without the text tower."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.utils.errors import UserError
from ovml.vocabulary import check_names

FORMAT = "ovml-label-embeddings"
TENSOR = "label_embeds"


class LabelEmbeddings(NamedTuple):
    """Names and their embeddings.

    Attributes:
        labels: `L` names.
        embeds: `[L, D]`, float32, as a head takes them: not L2-normalised.
        metadata: What else the file says, as plain text by name.
    """

    labels: tuple[str, ...]
    embeds: Tensor
    metadata: Mapping[str, str]


def write_label_embeddings(
    path: str | Path, labels: Sequence[str], embeds: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file: the tensor `label_embeds`, and the names as JSON under `labels` in its metadata.

    Args:
        path: It appears when it is complete.
        labels: `L` names.
        embeds: `[L, D]`.
        metadata: Further text by name.

    Raises:
        UserError: There is not one row for each name, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    if embeds.ndim != 2 or len(embeds) != len(labels):
        raise UserError(f"{path}: {len(labels)} labels need as many rows [L, D]; got {list(embeds.shape)}")
    names = json.dumps(list(labels), ensure_ascii=False)
    aside = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        tensors = {TENSOR: embeds.detach().float().cpu().contiguous()}
        save_file(tensors, aside, metadata={**(metadata or {}), "format": FORMAT, "labels": names})
        aside.chmod(mode)  # safetensors lets nobody else read it
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written ({reason}); give another path") from error
    finally:
        aside.unlink(missing_ok=True)


def read_label_embeddings(path: str | Path) -> LabelEmbeddings:
    """Read what `write_label_embeddings` wrote.

    Raises:
        UserError: The file is missing, or is something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.pop("format", None) != FORMAT:
                raise ValueError("other safetensors")
            labels = check_names(json.loads(metadata.pop("labels")), where=str(path))
            embeds: Tensor = file.get_tensor(TENSOR)
            if embeds.ndim != 2 or len(embeds) != len(labels) or embeds.dtype != torch.float32:
                raise ValueError(f"{len(labels)} labels, {embeds.dtype} {list(embeds.shape)}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}: no label embeddings ({reason}); give a file that ovml embed-labels wrote") from error
    return LabelEmbeddings(labels, embeds, metadata)
