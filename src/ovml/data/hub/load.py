"""Loads data sets with the `datasets` library, with one-line errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetNotFoundError

from ovml.data.cache import full_disk
from ovml.utils.errors import UserError, all_lines, first_line

logger = logging.getLogger(__name__)

STREAM_SHARDS = 64
"""Shards of a saved data set when it is streamed: enough for the workers of several processes."""


def is_hub_name(path: Path) -> bool:
    """Whether a path looks like `owner/name`; below an existing folder it is a mistyped path instead."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path.as_posix())) and not path.parent.exists()


@contextmanager
def download_hint(root: Path, source: str, what: str = "") -> Iterator[None]:
    """Turn any error in the block into one line that says where to download the data set.

    Args:
        root: Its folder, or its name on the Hub.
        source: Where to download it.
        what: The part that is loaded, for the message.

    Raises:
        UserError: The block raised an error.
        OSError: The disk is full.
    """
    try:
        yield
    except Exception as error:  # the libraries raise many types
        if full := full_disk(error):
            raise full from error
        failed = "cannot be read" if root.is_dir() else "no such folder, and it cannot be loaded from the Hub"
        reason = all_lines(error.__cause__ or error)
        raise UserError(f"{root}: {what}{failed} ({reason}); download the set from {source}") from error


@dataclass(frozen=True)
class LoadedSet:
    """The splits of a data set.

    Attributes:
        splits: By name.
        key: Changes with the rows.
        num_rows: Number of rows of each split, if known.
        folders: Folders of its files.
    """

    splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]
    key: str
    num_rows: dict[str, int]
    folders: Sequence[str] = ()


def load_set(
    path: str, name: str | None = None, data_files: Any = None, streaming: bool = False, cache_dir: str | None = None
) -> LoadedSet:
    """Load all splits of a data set.

    Args:
        path: Name on the Hub, folder, folder that `save_to_disk` wrote, or a file type (`parquet`, `webdataset`, ...)
            with `data_files`.
        name: Configuration, where the set has several.
        data_files: Files of each split, or of the training split.
        streaming: Read rows as they are needed, without preparing the set on disk.
        cache_dir: Folder of prepared sets. Default: the cache of `datasets`.

    Raises:
        UserError: It cannot be loaded.
        OSError: The disk is full.
    """
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _saved(folder, streaming)
        return _built(str(folder) if folder.is_dir() else path, name, data_files, streaming, cache_dir)
    except Exception as error:  # the library raises many types, all about the set named
        if full := full_disk(error):
            raise full from error
        raise UserError(f"{path}: {_reason(error, folder, data_files)}") from error


def _saved(folder: Path, streaming: bool) -> LoadedSet:
    saved = datasets.load_from_disk(str(folder))
    splits = {str(saved.split or "train"): saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    num_rows = {split: len(rows) for split, rows in splits.items()}
    key = "-".join(rows._fingerprint for rows in splits.values())
    if streaming:
        splits = {
            split: rows.to_iterable_dataset(num_shards=max(1, min(len(rows), STREAM_SHARDS)))
            for split, rows in splits.items()
        }
    return LoadedSet(splits, key, num_rows, [str(folder)])


def _built(path: str, name: str | None, data_files: Any, streaming: bool, cache_dir: str | None) -> LoadedSet:
    cache = str(Path(cache_dir).expanduser()) if cache_dir else None
    builder = datasets.load_dataset_builder(path, name, data_files=_expanded(data_files), cache_dir=cache)
    if streaming:
        splits = builder.as_streaming_dataset()
    else:
        builder.download_and_prepare()
        try:
            splits = builder.as_dataset()
        except (pa.ArrowInvalid, OSError) as error:
            logger.warning("%s: damaged (%s), so it is prepared again", builder.cache_dir, first_line(error))
            builder.download_and_prepare(download_mode="reuse_cache_if_exists")
            splits = builder.as_dataset()
    known = builder.info.splits or {}
    num_rows = {split: info.num_examples for split, info in known.items() if info.num_examples}
    files = [file for files in (builder.config.data_files or {}).values() for file in files]
    folders = dict.fromkeys([path, *map(os.path.dirname, files)])
    return LoadedSet(dict(splits), builder.cache_dir, num_rows, list(folders))


def cache_folders(cache_dir: str | None) -> list[str]:
    """Folders in which the libraries keep what they downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (cache_dir, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return [os.path.expanduser(str(cache)) for cache in caches if cache]


def _expanded(data_files: Any) -> Any:
    if isinstance(data_files, Mapping):
        return {split: _expanded(files) for split, files in data_files.items()}
    if isinstance(data_files, (list, tuple)):
        return [_expanded(file) for file in data_files]
    return os.path.expanduser(data_files) if isinstance(data_files, str) else data_files


def _reason(error: Exception, folder: Path, data_files: Any) -> str:
    is_local = folder.is_absolute() or str(folder).startswith(".") or len(folder.parts) > 2
    if is_local and not folder.exists():
        return "no such folder; give one, or the name of a data set on the Hub"
    if folder.is_file():
        return "is a file; give its folder, or its type as path (path=parquet) and the file as data_files"
    if isinstance(error, DatasetNotFoundError):
        return "no such data set on the Hub, or none that you may read; check the name, or log in (hf auth login)"
    if isinstance(error, ConnectionError):
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        return (
            f"not in the cache, and the Hub cannot be reached{offline}; "
            "connect to the network, or give a local folder (path=DIR)"
        )
    text = all_lines(error.__cause__ or error)
    what = "data_files" if data_files else "path and name"
    return f"cannot be loaded ({text[:200] or type(error).__name__}); check {what}"
