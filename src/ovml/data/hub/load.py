"""Loading any data set that the `datasets` library reads, with one line for what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovml.utils.errors import UserError

if TYPE_CHECKING:
    import datasets

STREAM_SHARDS = 64
"""Parts into which a saved data set is split to be streamed: enough for the workers of several processes."""


@dataclass(frozen=True)
class LoadedSet:
    """The splits of a data set.

    Attributes:
        splits: By name.
        key: Changes whenever the rows do.
        num_rows: Of the splits of which it is known.
    """

    splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]
    key: str
    num_rows: dict[str, int]


def load_set(
    path: str,
    name: str | None = None,
    data_files: Any = None,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> LoadedSet:
    """Load all splits of a data set.

    Args:
        path: Name on the Hub, folder, folder that `save_to_disk` wrote, or a file type (`parquet`, `webdataset`, ...)
            with `data_files`.
        name: Configuration, where the set has several.
        data_files: Files of each split, or of the training split.
        streaming: Read row by row rather than prepare the set on disk first.
        cache_dir: Where prepared sets are kept. Default: that of `datasets`.

    Raises:
        UserError: It cannot be loaded.
    """
    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _saved(folder, streaming)
        return _built(str(folder) if folder.is_dir() else path, name, data_files, streaming, cache_dir)
    except Exception as error:  # whatever the library raises, it is about the set that was named
        raise UserError(f"{path}: {_reason(error, folder, data_files)}") from error


def _saved(folder: Path, streaming: bool) -> LoadedSet:
    from datasets import Dataset, load_from_disk

    saved = load_from_disk(str(folder))
    splits = {str(saved.split or "train"): saved} if isinstance(saved, Dataset) else dict(saved)
    num_rows = {split: len(rows) for split, rows in splits.items()}
    key = "-".join(rows._fingerprint for rows in splits.values())
    if streaming:
        splits = {
            split: rows.to_iterable_dataset(num_shards=max(1, min(len(rows), STREAM_SHARDS)))
            for split, rows in splits.items()
        }
    return LoadedSet(splits, key, num_rows)


def _built(path: str, name: str | None, data_files: Any, streaming: bool, cache_dir: str | None) -> LoadedSet:
    from datasets import load_dataset_builder

    cache = str(Path(cache_dir).expanduser()) if cache_dir else None
    builder = load_dataset_builder(path, name, data_files=_expanded(data_files), cache_dir=cache)
    if streaming:
        splits = builder.as_streaming_dataset()
    else:
        builder.download_and_prepare()
        splits = builder.as_dataset()
    known = builder.info.splits or {}
    num_rows = {split: info.num_examples for split, info in known.items() if info.num_examples}
    return LoadedSet(dict(splits), builder.cache_dir, num_rows)


def _expanded(data_files: Any) -> Any:
    if isinstance(data_files, Mapping):
        return {split: _expanded(files) for split, files in data_files.items()}
    if isinstance(data_files, (list, tuple)):
        return [_expanded(file) for file in data_files]
    return os.path.expanduser(data_files) if isinstance(data_files, str) else data_files


def _reason(error: Exception, folder: Path, data_files: Any) -> str:
    from datasets.exceptions import DatasetNotFoundError

    is_local = folder.is_absolute() or str(folder).startswith(".") or len(folder.parts) > 2
    if is_local and not folder.exists():
        return "no such folder; give one, or the name of a data set on the Hub"
    if folder.is_file():
        return "is a file; give its folder, or its type as path (--data.path parquet) and the file as data_files"
    if isinstance(error, DatasetNotFoundError):
        return "no such data set on the Hub, or none that you may read; check the name, or log in (hf auth login)"
    if isinstance(error, ConnectionError):
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        return (
            f"not in the cache, and the Hub cannot be reached{offline}; "
            "connect to the network, or give a local folder (--data.path DIR)"
        )
    text = " ".join(str(error.__cause__ or error).split())
    what = "data_files" if data_files else "path and name"
    return f"cannot be loaded ({text[:200] or type(error).__name__}); check {what}"
