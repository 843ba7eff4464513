"""NUS-WIDE in the form used in the zero-shot literature: two HDF5 files with the labels of each image."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ovml.data.base import Split
from ovml.data.cache import Table, cached_folder, cached_table, ragged, record_batch
from ovml.data.nuswide.files import Layout, check_image_names, need_file
from ovml.utils.errors import UserError, all_lines
from ovml.utils.progress import track

H5_SOURCE = "https://github.com/sunanhe/MKT"
NAME_LISTS: dict[Split, str] = {"train": "img_names.pkl", "test": "test_img_names.pkl"}

BATCH_ROWS = 5_000

Bits = np.ndarray[Any, np.dtype[np.uint8]]


class H5Files(Layout):
    """Files of BiAM and MKT, where 1 is present, -1 absent and 0 unknown."""

    @cached_property
    def exhaustive(self) -> bool:
        """Whether nothing is unknown, so that absent labels need not be stored."""
        return not any(self.annotations(split).unknown for split in NAME_LISTS if h5_file(self.root, split).is_file())

    def annotations(self, split: Split) -> Annotations:
        """Annotations of a split's images; read from the HDF5 file once, then cached."""
        names = need_file(self.root / NAME_LISTS[split], source=H5_SOURCE)
        file = need_file(h5_file(self.root, split), source=H5_SOURCE)
        sizes = [len(self.vocabulary.seen), len(self.vocabulary.unseen)]
        cached = cached_folder(self.cache_dir, f"nuswide-annotations-{split}", [file, names], {"sizes": sizes})
        with cached as (folder, aside):
            if aside is not None:
                annotations = read_annotations(file, read_image_names(names), *sizes)
                np.savez(aside / "annotations.npz", **annotations._asdict())
        with np.load(folder / "annotations.npz") as found:
            return Annotations(found["present"], found["absent"], int(found["unknown"]))

    def table(self, split: Split) -> Table:
        """Rows of a split.

        Raises:
            UserError: A file is missing or malformed.
        """
        name_list = need_file(self.root / NAME_LISTS[split], source=H5_SOURCE)
        flickr = self.root / "Flickr"
        folders = {folder.name for folder in flickr.iterdir() if folder.is_dir()} if flickr.is_dir() else set()
        images = image_paths(read_image_names(name_list), folders, name_list)
        check_image_names(images, name_list)
        annotations = self.annotations(split)
        settings = {
            "root": str(self.root),
            "labels": len(self.vocabulary),
            "exhaustive": self.exhaustive,
            "images": hashlib.sha256("\n".join(images).encode()).hexdigest(),
        }

        def make(counts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
            counts["unknown annotations"] = annotations.unknown
            for start in range(0, len(images), BATCH_ROWS):
                part = slice(start, start + BATCH_ROWS)
                positive = _lists(annotations.present[part])
                negative = None if self.exhaustive else _lists(annotations.absent[part])
                yield record_batch([f"{flickr}/{name}" for name in images[part]], positive, negative, images[part])

        inputs = [name_list, h5_file(self.root, split)]
        return cached_table(self.cache_dir, f"nuswide-{split}", inputs, settings, make)


def _lists(bits: Bits) -> pa.Array:
    """Positions of the set bits of each row."""
    rows, places = np.nonzero(np.unpackbits(bits, axis=1))
    return ragged(rows, places, len(bits))


def h5_file(root: Path, split: Split) -> Path:
    """Label file of a split."""
    return root / "features" / f"nus_wide_{split}.h5"


class Annotations(NamedTuple):
    """Annotations of images as bits.

    Attributes:
        present: Labels present, `[N, ceil(L / 8)]`, packed by `numpy.packbits`.
        absent: Labels absent, likewise.
        unknown: Number of pairs of image and label that are neither.
    """

    present: Bits
    absent: Bits
    unknown: int


def read_annotations(file: Path, names: Sequence[str], num_seen: int, num_unseen: int) -> Annotations:
    """Read `<name>-labels` and `<name>-labels_81` of every image.

    `-labels` holds the seen labels, in the test split followed by the unseen ones. `-labels_81` holds the unseen labels
    and takes precedence. Labels in neither are unknown.

    Raises:
        UserError: h5py is not installed, the file is not HDF5, or an image's labels are missing or malformed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("these NUS-WIDE files need h5py; install it: pip install 'ovml[nuswide]'") from error
    size = num_seen + num_unseen
    present, absent = (np.zeros((len(names), -(-size // 8)), np.uint8) for _ in range(2))
    unknown = 0
    try:
        with h5py.File(file, "r") as content:
            for row, name in enumerate(track(names, f"reading {file.name}")):
                annotations = np.zeros(size, np.int8)
                labels = _read(h5py, content, f"{name}-labels", (num_seen, size))
                unseen = _read(h5py, content, f"{name}-labels_81", (num_unseen,))
                if labels is None:
                    raise UserError(f"{file}: no labels of {name}; the list of names belongs to another file")
                annotations[: len(labels)] = labels
                if unseen is not None:
                    annotations[num_seen:] = unseen
                present[row] = np.packbits(annotations == 1)
                absent[row] = np.packbits(annotations == -1)
                unknown += size - int(np.count_nonzero(annotations))
    except OSError as error:
        raise UserError(f"{file}: cannot be read as HDF5 ({error}); download it again") from error
    return Annotations(present, absent, unknown)


def _read(h5py: Any, content: Any, key: str, lengths: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """Values of an HDF5 data set; `None` if it does not exist."""
    try:
        found = h5py.h5d.open(content.id, key.encode())  # `content[key]` takes three times as long
    except KeyError:
        return None
    values = np.empty(found.shape, found.dtype)
    found.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    if values.shape not in [(length,) for length in lengths]:
        expected = " or ".join(str(length) for length in lengths)
        raise UserError(
            f"{content.filename}: {key} has the shape {values.shape}, {expected} values expected; "
            "use the label lists (Concepts925.txt, Concepts81.txt) that belong to it"
        )
    if values.dtype.kind not in "iufb" or not ((values == 0) | (values == 1) | (values == -1)).all():
        raise UserError(f"{content.filename}: {key} has values other than 1, 0 and -1; download the file again")
    return values


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts and strings; refuses everything loaded by name, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")


def read_image_names(path: Path) -> list[str]:
    """Read a pickled `{"img_names": [...]}`, also one of Python 2, without running any code in it.

    Raises:
        UserError: The file holds something else.
    """
    with open(path, "rb") as file:
        try:
            content = _PlainUnpickler(file, encoding="latin1").load()
        except Exception as error:  # a broken pickle raises many types
            raise UserError(f"{path}: no pickle of plain names ({all_lines(error)}); download it again") from error
    names = content.get("img_names") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: a pickled {{"img_names": [names]}} is expected; download it again')
    return names


def image_paths(names: Sequence[str], folders: Collection[str], where: Path) -> list[str]:
    """Turn `<tag>_<n>_<id>.jpg` into `<tag>/<n>_<id>.jpg`.

    Tags may contain underscores, and names may begin with parent folders, joined by underscores. So the tag is the
    longest suffix of the part before `<n>` that is a folder.

    Args:
        names: Names of images.
        folders: Folders of images, one per tag.
        where: File of the names, for messages.

    Raises:
        UserError: A name has another form.

    >>> image_paths(["sky_0001_12.jpg", "data_Flickr_dark_sky_0002_13.jpg"], {"sky", "dark_sky"}, Path("names.pkl"))
    ['sky/0001_12.jpg', 'dark_sky/0002_13.jpg']
    """
    paths = []
    for name in names:
        start, *file = name.rsplit("_", 2)
        if len(file) < 2 or not start:
            raise UserError(f"{where}: {name!r}, but <tag>_<n>_<id>.jpg is expected; download the list again")
        parts = start.split("_")
        ends = ("_".join(parts[first:]) for first in range(len(parts)))
        # Without any folder of images: what follows `Flickr_`, if the name contains it.
        tag = next((end for end in ends if end in folders), start.rpartition("Flickr_")[2])
        paths.append(f"{tag}/{'_'.join(file)}")
    return paths
