"""Rows of a `datasets` data set as tensors: reading pictures, dense targets, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, IterableDataset, get_worker_info

from ovml.utils.errors import UserError
from ovml.utils.images import load_image

if TYPE_CHECKING:
    import datasets

Transform = Callable[[Image.Image], Tensor]
OnBroken = Literal["raise", "skip", "replace"]

NO_ROW = -1
"""Index that stands for no row."""

MAX_REPLACEMENTS = 20
"""Broken pictures in a row after which the whole set is taken for broken."""


class RowReader:
    """Turns rows into tensors.

    What a transform draws for a row depends on (seed, epoch, row) alone: not on the number of workers, not on the
    order, and not on whether the run was interrupted.

    Args:
        transform: From RGB image to pixel values `[3, H, W]`; its random numbers are torch's.
        num_labels: Size of the vocabulary.
        exhaustive: Whether labels not listed are absent (0) or unknown (-1).
        seed: Seed of the transform's random numbers.
    """

    def __init__(self, transform: Transform, num_labels: int, exhaustive: bool, seed: int = 0) -> None:
        self.transform = transform
        self.num_labels = num_labels
        self.exhaustive = exhaustive
        self.seed = seed

    def read(self, row: Mapping[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """One row as `pixel_values`, `labels` and `image_id`.

        Raises:
            UserError: The picture cannot be read.
        """
        image = read_image(row["image"], str(row["image_id"]))
        with seeded(row_seed(self.seed, epoch, index)):
            pixel_values = self.transform(image)
        labels = self.targets(row["positive"], row["negative"])
        return {"pixel_values": pixel_values, "labels": labels, "image_id": str(row["image_id"])}

    def targets(self, positive: Sequence[int], negative: Sequence[int]) -> Tensor:
        """Dense targets `[L]` int8 of sparse label ids."""
        targets = torch.full((self.num_labels,), 0 if self.exhaustive else -1, dtype=torch.int8)
        targets[torch.as_tensor(negative, dtype=torch.long)] = 0
        targets[torch.as_tensor(positive, dtype=torch.long)] = 1
        return targets


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU for a while.

    `torch.manual_seed` would see to every device as well, at half a millisecond a call.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def row_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of a row's random numbers in an epoch."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])


def read_image(value: Any, image_id: str) -> Image.Image:
    """The picture of a row: what an undecoded `datasets.Image` column holds, or any picture.

    Raises:
        UserError: It is missing or broken; the message names it.
    """
    if not isinstance(value, Mapping):
        return load_image(value, name=image_id)
    content, path = value.get("bytes"), value.get("path")
    if content is not None:
        return load_image(content, name=path or image_id)
    if path is None:
        raise UserError(f"{image_id}: the row holds no image; leave it out of the data set")
    if "://" in path:  # a file inside an archive or on a server: `datasets` knows how to open it
        from datasets import Image as ImageFeature

        return load_image(ImageFeature().decode_example({"bytes": None, "path": path}), name=path)
    return load_image(path)


class TensorRows(Dataset[dict[str, Any]]):
    """A map-style data set of tensors, read by `(epoch, index)`.

    Args:
        rows: With columns `image`, `positive`, `negative` and `image_id`.
        reader: Turns a row into tensors.
        on_broken: What a broken picture does: `raise` an error, `skip` it (its place stays empty), or have another row
            `replace` it, drawn from (seed, epoch, row).
    """

    def __init__(self, rows: datasets.Dataset, reader: RowReader, on_broken: OnBroken = "raise") -> None:
        self.rows = undecoded(rows)
        self.reader = reader
        self.on_broken = on_broken

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read rows by `(epoch, index)`; called by the data loader with a whole batch."""
        if keys == [(0, NO_ROW)]:
            return [{}]
        columns = self.rows[[index for _, index in keys]]
        return [
            self._read({name: values[position] for name, values in columns.items()}, *key)
            for position, key in enumerate(keys)
        ]

    def _read(self, row: Mapping[str, Any], epoch: int, index: int) -> dict[str, Any]:
        broken: list[str] = []
        draw = np.random.default_rng(row_seed(self.reader.seed, epoch, index))
        while len(broken) < MAX_REPLACEMENTS:
            try:
                return {**self.reader.read(row, epoch, index), "broken": broken}
            except UserError as error:
                if self.on_broken == "raise":
                    raise
                broken.append(str(error))
                if self.on_broken == "skip":
                    return {"broken": broken}
                index = int(draw.integers(len(self.rows)))
                row = self.rows[index]
        raise _all_broken(broken)


class TensorStream(IterableDataset[dict[str, Any]]):
    """A streamed data set of tensors: the share of this process and worker, each row once an epoch.

    Args:
        rows: With columns `image`, `positive`, `negative` and `image_id`.
        reader: Turns a row into tensors.
        on_broken: As for `TensorRows`; the row that replaces a broken one is the next of the stream.
        rank: Of this process.
        world_size: Number of processes.
        buffer_size: Rows among which the shuffling draws; 0 keeps the order.
        epoch_size: Rows that every process yields in an epoch, starting again where the stream is shorter. Training
            over several processes needs it: all must take the same number of steps. It also gives the stream a length.
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
        from datasets.distributed import split_dataset_by_node

        rows = undecoded(rows)
        if buffer_size:
            rows = rows.shuffle(seed=reader.seed, buffer_size=buffer_size)
        self.rows = split_dataset_by_node(rows, rank=rank, world_size=world_size)
        self.reader = reader
        self.on_broken = on_broken
        self.rank, self.world_size = rank, world_size
        self.shuffled = buffer_size > 0
        self.epoch = 0
        self.epoch_size = epoch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation; called before every epoch."""
        self.epoch = epoch
        if self.shuffled:  # `datasets` would reorder the shards of any other stream too
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
                if share is not None and index >= share:
                    return
                try:
                    # Other workers and processes count from 0 as well; no two rows draw the same numbers.
                    place = (index * workers + number) * self.world_size + self.rank
                    item = self.reader.read(row, self.epoch, place)
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
                    yield {}  # an empty batch: the process must take part in the others' sums
                return
            if index == start:
                raise UserError(
                    f"the stream has no picture for worker {number} of process {self.rank} to train on; "
                    "use fewer workers or processes, or more shards"
                )

    def _share(self, number: int, workers: int) -> int | None:
        """Rows of this process that a worker yields: in proportion to its shards, of which it may have none."""
        if self.epoch_size is None:
            return None
        shards = int(self.rows.num_shards)
        before = sum(len(range(other, shards, workers)) for other in range(number))
        own = len(range(number, shards, workers))
        return self.epoch_size * (before + own) // shards - self.epoch_size * before // shards


def _all_broken(broken: Sequence[str]) -> UserError:
    return UserError(f"{len(broken)} pictures in a row cannot be read; the first: {broken[0]}")


def undecoded(rows: Any) -> Any:
    """The same rows with pictures as bytes or path, so that a broken one can be named."""
    from datasets import Image as ImageFeature

    if rows.features is not None and isinstance(rows.features.get("image"), ImageFeature):
        return rows.cast_column("image", ImageFeature(decode=False))
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack rows into a batch; `broken` has a message for every picture that could not be read."""
    whole = [row for row in rows if "labels" in row]
    empty = torch.empty(0)
    # Rows whose features are kept on disk have these in the place of pictures.
    given = "features" if whole and "features" in whole[0] else "pixel_values"
    return {
        given: torch.stack([row[given] for row in whole]) if whole else empty,
        "labels": torch.stack([row["labels"] for row in whole]) if whole else empty,
        "image_id": [row["image_id"] for row in whole],
        "broken": [message for row in rows for message in row.get("broken", [])],
    }


class TrainSampler(DistributedSampler[Any]):
    """Draws `(epoch, index)`, so that augmentation can depend on the epoch; the same number on every process."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


class EvalSampler(DistributedSampler[Any]):
    """Every row exactly once over all processes, in order.

    The sampler of torch repeats rows until all processes have the same number; metrics would count those twice.
    A process that is left without a row draws `NO_ROW`, an empty batch: it must take part in the others' sums.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, index) for index in self._share())

    def __len__(self) -> int:
        return len(self._share())

    def _share(self) -> Sequence[int]:
        return range(self.rank, len(self.dataset), self.num_replicas) or [NO_ROW]  # type: ignore[arg-type]
