"""Label embeddings on disk, found by a digest of everything that they depend on.

A file per model, prompt and list of labels: DIGEST.safetensors with the tensor `label_embeds`. Another weight,
template, label, tokenizer, type of numbers or version of ovml, torch or transformers makes another digest, so no file
is ever out of date; the ones that were not used for the longest time make room for new ones.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from torch import Tensor

from ovml.prompts import PromptLearner
from ovml.utils.console import warn
from ovml.utils.errors import first_line
from ovml.utils.files import atomic_write
from ovml.utils.parts import class_path
from ovml.utils.tensors import digest
from ovml.utils.version import __version__
from ovml.vocabulary import LabelVocabulary

FOLDER = "OVML_CACHE"
"""Environment variable: the folder of what can be computed again. Default: `~/.cache/ovml`."""
FORMAT = "ovml-cached-label-embeddings-1"
TENSOR = "label_embeds"
LEAST_LABELS = 256
"""Labels below which a list is embedded anew: that takes no longer than the digest of the text tower."""
MOST_BYTES = 2**30
"""Size of all files together."""
NAME = re.compile(r"[0-9a-f]{40}\.safetensors")
KNOWN = {"ovml", "transformers", "torch"}
"""Packages whose code is known by their versions."""


def cached(embed: Callable[[], Tensor], prompt: PromptLearner, vocabulary: LabelVocabulary) -> Tensor:
    """The embeddings of labels: from the cache, or else computed and kept there; see `OpenVocabularyModel.label_cache`.

    A file that is damaged, or is no cached embeddings, is ignored and replaced, and so is a folder that cannot be
    used; a line says so.

    Args:
        embed: Computes the embeddings.
        prompt: Embeds the labels; it is bound to the text tower.
        vocabulary: The labels. Fewer than `LEAST_LABELS` are always computed, and so are those of prompts whose code
            is not ovml's own.
    """
    if len(vocabulary) < LEAST_LABELS or not all(_is_known(module) for module in prompt.modules()):
        return embed()
    key = label_digest(prompt, vocabulary)
    try:
        folder = cache_folder()
        path = folder / f"{key}.safetensors"
        embeds = _read(path, key, len(vocabulary))
    except (OSError, RuntimeError) as error:
        warn(f"labels are embedded anew: the cache cannot be used ({first_line(error)}); {FOLDER} names another folder")
        return embed()
    if embeds is None:
        embeds = embed()
        try:
            if embeds.nbytes <= MOST_BYTES:
                _write(path, key, embeds)
                _make_room(folder)
        except OSError as error:
            warn(f"label embeddings are not kept: {path}: {error.strerror or error}; {FOLDER} names another folder")
    return embeds.to(next(prompt.text_encoder.parameters()).device)


def cache_folder() -> Path:
    """The folder of cached label embeddings.

    Raises:
        RuntimeError: There is no home folder.
    """
    place = os.environ.get(FOLDER)
    return (Path(place) if place else Path.home() / ".cache" / "ovml") / "label_embeddings"


def label_digest(prompt: PromptLearner, vocabulary: LabelVocabulary) -> str:
    """A digest of all that label embeddings depend on: weights, prompt, tokenizer, texts, type, device and code."""
    encoder = prompt.text_encoder
    tokenizer, config = encoder.tokenizer, encoder.text_model.config
    weight = next(encoder.parameters())
    about = {
        "format": FORMAT,
        "versions": [__version__, torch.__version__, transformers.__version__],
        "prompt": f"{class_path(type(prompt))} {prompt!r}",
        "config": [config.to_json_string(use_diff=False), config._attn_implementation, repr(encoder.execution)],
        "tokenizer": [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side],
        "padding": tokenizer.pad_token_id,
        "texts": vocabulary.texts,
        "numbers": [str(weight.dtype), weight.device.type],
    }
    return digest(json.dumps(about), dict(prompt.named_parameters()), dict(prompt.named_buffers()), length=40)


def _is_known(module: torch.nn.Module) -> bool:
    """Whether a module's code, and its tokenizer if it has one, are part of the digest."""
    tokenizer = getattr(module, "tokenizer", None)
    return type(module).__module__.partition(".")[0] in KNOWN and (tokenizer is None or tokenizer.is_fast)


def _read(path: Path, key: str, num_labels: int) -> Tensor | None:
    """The embeddings in a file; `None` if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            embeds: Tensor = file.get_tensor(TENSOR).clone()  # aligned, for the same scores to the last bit
        if metadata.get("format") != FORMAT or metadata.get("key") != key or len(embeds) != num_labels:
            raise ValueError("other content")
        if metadata.get("digest") != digest("", {TENSOR: embeds}):
            raise ValueError("damaged numbers")
        with suppress(OSError):  # another user's, or gone by now
            os.utime(path)  # the ones used last stay longest
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError) as error:
        warn(f"{path}: no cached label embeddings ({first_line(error)}); it is replaced")
        return None
    return embeds


def _write(path: Path, key: str, embeds: Tensor) -> None:
    from safetensors.torch import save

    embeds = embeds.detach().cpu().contiguous()
    content = save({TENSOR: embeds}, {"format": FORMAT, "key": key, "digest": digest("", {TENSOR: embeds})})
    with atomic_write(path) as beside:
        beside.write_bytes(content)


def _make_room(folder: Path) -> None:
    """Remove the files that were not used for the longest time, until all are within `MOST_BYTES`."""
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process made room too
            if NAME.fullmatch(path.name):
                files.append((path.stat(), path))
    size = sum(status.st_size for status, _ in files)
    for status, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
        if size > MOST_BYTES:
            path.unlink(missing_ok=True)
            size -= status.st_size
