"""Rows of a `datasets` data set as tensors: reading images, dense targets, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from datasets.utils.file_utils import xopen
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ovml.data.paths import PathCheck
from ovml.data.samplers import NO_ROW
from ovml.utils.errors import UserError, first_line
from ovml.utils.images import load_image

Transform = Callable[[Image.Image], Tensor]
OnBroken = Literal["raise", "skip", "replace"]

MAX_REPLACEMENTS = 20
"""Number of unreadable images in succession after which reading stops with an error."""


class RowReader:
    """Turns rows into tensors.

    The random numbers of a row's transform depend on (seed, epoch, row) only, not on the number of workers, the order
    or an interruption of the run.

    Args:
        transform: Turns an RGB image into bytes or normalized floats `[3, H, W]`; draws random numbers from torch.
        num_labels: Size of the vocabulary.
        exhaustive: Whether labels that a row does not list are absent (0); otherwise they are unknown (-1).
        seed: Seed of the transform's random numbers.
        allow_urls: Whether servers are asked for images that are addresses.
    """

    def __init__(
        self, transform: Transform, num_labels: int, exhaustive: bool, seed: int = 0, allow_urls: bool = False
    ) -> None:
        self.transform = transform
        self.num_labels = num_labels
        self.exhaustive = exhaustive
        self.seed = seed
        self.path_check = PathCheck(allow_outside=True, allow_urls=allow_urls)

    def read(self, row: Mapping[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """One row as `pixel_values`, `labels` and `image_id`; seeds torch's CPU generator (see `kept_generator`).

        Raises:
            UserError: The image cannot be read, or is an address on a server.
        """
        self.path_check.check_row(row["image"], f"row {row['image_id']!r}")
        image = read_image(row["image"], str(row["image_id"]))
        torch.default_generator.manual_seed(row_seed(self.seed, epoch, index))
        pixel_values = self.transform(image)
        labels = self.targets(row["positive"], row["negative"])
        return {"pixel_values": pixel_values, "labels": labels, "image_id": str(row["image_id"])}

    def targets(self, positive: Sequence[int], negative: Sequence[int]) -> Tensor:
        """Dense targets `[L]` int8 of sparse label ids."""
        targets = np.full(self.num_labels, 0 if self.exhaustive else -1, np.int8)
        targets[negative] = 0
        targets[positive] = 1
        return torch.from_numpy(targets)


@contextmanager
def kept_generator() -> Iterator[None]:
    """Leave torch's CPU generator after a block as it was before.

    `torch.random.fork_rng` and `torch.manual_seed` would do so for every device, which takes half a millisecond.
    """
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def row_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of a row's random numbers in an epoch."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


def read_image(value: Any, image_id: str) -> Image.Image:
    """Decode the image of a row: an undecoded `datasets.Image` value, or any image.

    Raises:
        UserError: It is missing or broken; the message names it.
    """
    if not isinstance(value, Mapping):
        return load_image(value, name=image_id)
    content, path = value.get("bytes"), value.get("path")
    if content is not None:
        return load_image(content, name=path or image_id)
    if path is None:
        raise UserError(f"{image_id}: the row holds no image; remove it from the data set")
    return load_image(_content_at(path) if "://" in path else path, name=path)


def _content_at(address: str) -> bytes:
    """The bytes of a file inside an archive or on a server; `datasets` would decode formats that start programs."""
    try:
        with xopen(address, "rb") as file:
            content: bytes = file.read()
    except Exception as error:  # the libraries of protocols and archives raise many types
        raise UserError(f"{address}: cannot be read ({first_line(error)}); check the address") from error
    return content


class TensorRows(Dataset[dict[str, Any]]):
    """A map-style data set of tensors, read by `(epoch, index)`, or by the index alone, which means epoch 0.

    Args:
        rows: With columns `image`, `positive`, `negative` and `image_id`.
        reader: Turns a row into tensors.
        on_broken: What to do about an unreadable image: `raise` an error, `skip` it (its place stays empty), or
            `replace` it by another row, drawn from (seed, epoch, row).
    """

    def __init__(self, rows: datasets.Dataset, reader: RowReader, on_broken: OnBroken = "raise") -> None:
        self.rows = undecoded(rows)
        self.reader = reader
        self.on_broken = on_broken

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> list[dict[str, Any]]:
        """Read a whole batch of rows; called by the data loader."""
        # Lightning's own samplers give the index alone.
        places = [key if isinstance(key, tuple) else (0, key) for key in keys]
        if places == [(0, NO_ROW)]:
            return [{}]
        rows = self.rows.__getitems__([index for _, index in places])
        with kept_generator():
            return [self._read(row, *place) for row, place in zip(rows, places, strict=True)]

    def _read(self, row: Mapping[str, Any], epoch: int, index: int) -> dict[str, Any]:
        broken: list[str] = []
        draw = None
        while len(broken) < MAX_REPLACEMENTS:
            try:
                return {**self.reader.read(row, epoch, index), "row": index, "broken": broken}
            except UserError as error:
                if self.on_broken == "raise":
                    raise
                broken.append(str(error))
                if self.on_broken == "skip":
                    return {"broken": broken}
                draw = draw or np.random.default_rng(row_seed(self.reader.seed, epoch, index))
                index = int(draw.integers(len(self.rows)))
                row = self.rows[index]
        raise _all_broken(broken)


class TensorStream(IterableDataset[dict[str, Any]]):
    """A streamed data set of tensors: the share of this process and worker, each row once per epoch.

    Args:
        rows: With columns `image`, `positive`, `negative` and `image_id`.
        reader: Turns a row into tensors.
        on_broken: As for `TensorRows`; the next row of the stream replaces a broken one.
        rank: Rank of this process.
        world_size: Number of processes.
        buffer_size: Size of the shuffle buffer in rows; 0 keeps the order.
        epoch_size: Rows that every process yields per epoch; a shorter stream starts again. Training with several
            processes needs it, because all must take the same number of steps. It also gives the stream a length.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        reader: RowReader,
        on_broken: OnBroken = "raise",
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 0,
        epoch_size: int | None = None,
    ) -> None:
        rows = undecoded(rows)
        if buffer_size:
            rows = rows.shuffle(seed=reader.seed, buffer_size=buffer_size)
        self.rows = split_dataset_by_node(rows, rank=rank, world_size=world_size)
        self.reader = reader
        self.on_broken = on_broken
        self.rank, self.world_size = rank, world_size
        self.shuffled = buffer_size > 0
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.epoch_size = epoch_size

    @property
    def epoch(self) -> int:
        """The epoch; worker processes that live for several see each change."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which selects the order and the augmentation."""
        self._epoch.fill_(epoch)
        if self.shuffled:  # `datasets` would reorder the shards of an unshuffled stream too
            self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        if self.epoch_size is None:
            raise TypeError("a stream of unknown length; give epoch_size")
        return self.epoch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        share = self._share(number, workers)
        index = 0
        broken: list[str] = []
        while share is None or index < share:
            start = index
            for row in self.rows:
                if index == share:
                    return
                try:
                    # A number that no other worker or process uses, so that no two rows draw the same random numbers.
                    place = (index * workers + number) * self.world_size + self.rank
                    with kept_generator():
                        item = {**self.reader.read(row, self.epoch, place), "row": place}
                except UserError as error:
                    if self.on_broken == "raise":
                        raise
                    broken.append(str(error))
                    if self.on_broken == "replace":
                        if len(broken) >= MAX_REPLACEMENTS:
                            raise _all_broken(broken) from error
                        continue
                    item = {}
                yield {**item, "broken": broken}
                broken = []
                index += 1
            if share is None:
                if index == 0 and self.world_size > 1:
                    yield {}  # an empty batch: the process must take part in the collective sums
                return
            if index == start:
                raise UserError(
                    f"the stream has no image for worker {number} of process {self.rank} to train on; "
                    "use fewer workers or processes, or more shards"
                )

    def _share(self, number: int, workers: int) -> int | None:
        """Number of this process's rows that a worker yields, in proportion to its shards (it may have none)."""
        if self.epoch_size is None:
            return None
        shards = int(self.rows.num_shards)
        before = sum(len(range(other, shards, workers)) for other in range(number))
        own = len(range(number, shards, workers))
        return self.epoch_size * (before + own) // shards - self.epoch_size * before // shards


def _all_broken(broken: Sequence[str]) -> UserError:
    return UserError(f"{len(broken)} images in a row cannot be read; the first: {broken[0]}")


def undecoded(rows: Any, column: str = "image") -> Any:
    """Return the rows with undecoded images, so that an error can name the broken one."""
    if rows.features is not None and isinstance(rows.features.get(column), datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows into a batch; `broken` lists a message for every image that cannot be read.

    `row` lists the rows' numbers in the split.
    """
    whole = [row for row in rows if "labels" in row]
    empty = torch.empty(0)
    # Rows of a feature cache have features instead of pixel values.
    given = "features" if whole and "features" in whole[0] else "pixel_values"
    if len({row[given].dtype for row in whole}) > 1:  # stacking would turn the bytes into floats that look normalized
        raise UserError(
            "data.augmentation: gives bytes for some images and floats for others; give one kind "
            "(processor.normalize_pixels turns bytes into normalized floats)"
        )
    return {
        given: torch.stack([row[given] for row in whole]) if whole else empty,
        "labels": torch.stack([row["labels"] for row in whole]) if whole else empty,
        "image_id": [row["image_id"] for row in whole],
        "row": [row["row"] for row in whole],
        "broken": [message for row in rows for message in row.get("broken", [])],
    }
