"""Batches of images that are read ahead, and results that come from the device while the next batch runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from ovml.utils.images import ImageLike

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    images: Iterable[ImageLike], read: Callable[[ImageLike], T], batch_size: int, num_workers: int
) -> Iterator[list[tuple[ImageLike, T]]]:
    """Yield batches of images with what was read of each; the next batch is read while the caller works.

    Args:
        images: Any images.
        read: Reads one.
        batch_size: Images per batch.
        num_workers: Threads; 0 reads between batches.
    """
    rest = iter(images)
    if num_workers == 0:
        while batch := [(image, read(image)) for image in islice(rest, batch_size)]:
            yield batch
        return
    pool = ThreadPoolExecutor(num_workers)
    ahead: deque[tuple[ImageLike, Future[T]]] = deque()
    try:
        while True:
            for image in islice(rest, 2 * batch_size - len(ahead)):
                ahead.append((image, pool.submit(read, image)))
            if not ahead:
                return
            some = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
            yield [(image, future.result()) for image, future in some]
    finally:
        pool.shutdown(cancel_futures=True)


def to_device(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack tensors of one shape on a device. On CUDA the copy runs while the caller goes on."""
    stacked = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=device.type == "cuda")
    return torch.stack(list(rows), out=stacked).to(device, non_blocking=True)


class OnItsWay:
    """A tensor that is copied to the host. On CUDA the copy runs while the caller goes on.

    Args:
        tensor: Any.

    Example:
        >>> OnItsWay(torch.ones(1, 2)).arrived().tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, tensor: Tensor) -> None:
        on_cuda = tensor.device.type == "cuda"
        self._copy = tensor.to("cpu", non_blocking=on_cuda)
        self._event = torch.cuda.Event() if on_cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(tensor.device))

    def arrived(self) -> Tensor:
        """Wait for the tensor, and return it on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy


def one_ahead(launch: Callable[[T], R], work: Iterable[T], ahead: int) -> Iterator[tuple[T, R]]:
    """Yield each piece of work with what `launch` made of it, after some more pieces were launched.

    Args:
        launch: Begins a piece of work.
        work: Pieces.
        ahead: Pieces that are launched before one is yielded; 0 for devices that finish within `launch`.

    Example:
        >>> [done for _, done in one_ahead(str, range(3), 1)]
        ['0', '1', '2']
    """
    launched: deque[tuple[T, R]] = deque()
    for piece in work:
        launched.append((piece, launch(piece)))
        if len(launched) > ahead:
            yield launched.popleft()
    yield from launched
