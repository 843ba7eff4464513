"""Texts as token ids: tokenised once, kept on the device, run in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ovml.encoders.prefix import shared_length

TEXTS_ON_CPU = 256
"""Texts per batch on a CPU, whose caches hold the activations of few."""
TEXTS_ON_GPU = 4096
"""Texts per batch on other devices at most: more would be padded to longer ones without saving anything."""
SHARE_OF_MEMORY = 1 / 16
"""Part of a GPU's memory that the activations of one block may take."""
BYTES_PER_TOKEN = 16 * 4
"""Bytes per token and unit of the tower's width that a block needs: queries, keys, values, the MLP, in float32."""


class TextBatch(NamedTuple):
    """Texts that run together, on their device.

    Attributes:
        ids: Token ids `[N, T]`.
        rows: For each token `[N, T]` 1 + the index of the learned vector that replaces its embedding, or 0; `None`
            where no token is replaced.
        lengths: Number of tokens of each text `[N]`.
        num_shared: Number of leading tokens that all texts share.
    """

    ids: Tensor
    rows: Tensor | None
    lengths: Tensor
    num_shared: int


class TextBatches(NamedTuple):
    """Batches, and what restores the order of the texts.

    Attributes:
        batches: Shortest texts first.
        places: Place of each text `[L]` in the concatenated batches; `None` where it is its own.
    """

    batches: list[TextBatch]
    places: Tensor | None

    def restore(self, embeds: Sequence[Tensor]) -> Tensor:
        """Concatenate the embeddings of all batches in the order of the texts."""
        together = embeds[0] if len(embeds) == 1 else torch.cat(list(embeds))
        return together if self.places is None else together[self.places]


class TokenizedTexts:
    """Token ids of texts, in which learned vectors may replace the embeddings of some tokens.

    Padded ids and the batches of all texts are made once per device and kept there.

    Args:
        ids: Token ids of each text.
        rows: For each token the index of the learned vector that replaces its embedding, or -1. Default: none does.

    Attributes:
        ids: `[L, T]` on the CPU, padded with 0.
        rows: `[L, T]` on the CPU, padded with -1; or `None`.
        lengths: Number of tokens of each text `[L]`, on the CPU.

    Example:
        >>> texts = TokenizedTexts([[1, 5, 2], [1, 2], [1, 6, 7, 2]])
        >>> found = texts.batches("cpu", 2)
        >>> [batch.ids.tolist() for batch in found.batches], found.places.tolist()
        ([[[1, 2, 0], [1, 5, 2]], [[1, 6, 7, 2]]], [1, 0, 2])
    """

    def __init__(self, ids: Sequence[Sequence[int]], rows: Sequence[Sequence[int]] | None = None) -> None:
        self.ids = pad_rows(ids)
        self.rows = None if rows is None else pad_rows(rows, value=-1)
        self.lengths = torch.tensor([len(own) for own in ids])
        self._num_shared = _num_shared(self.ids, self.rows, self.lengths)
        self._on_device: tuple[Tensor, Tensor | None, Tensor] | None = None
        self._batches: dict[tuple[torch.device, int], TextBatches] = {}

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return self.ids.shape[1]

    def batches(self, device: torch.device | str, size: int, columns: Tensor | None = None) -> TextBatches:
        """Batches of similar length on a device.

        Args:
            device: Where the texts run.
            size: Texts per batch.
            columns: Positions of the texts, on the CPU: their tokens are selected on the device. Default: all texts,
                whose batches are kept.
        """
        device = torch.device(device)
        if columns is not None:
            return self._select(device, size, columns)
        if (device, size) not in self._batches:
            self._batches = {(device, size): self._all(device, size)}
        return self._batches[device, size]

    def _all(self, device: torch.device, size: int) -> TextBatches:
        """Batches of all texts; each knows what its own texts share."""
        order, places = _by_length(self.lengths, size)
        batches = []
        for own in order.split(size):
            lengths = self.lengths[own]
            width = int(lengths.max())
            ids, rows = self.ids[own, :width], None if self.rows is None else self.rows[own, :width]
            shared = _num_shared(ids, rows, lengths)
            moved = _moved(ids, rows, lengths, device)
            batches.append(TextBatch(*moved, shared))
        return TextBatches(batches, None if places is None else places.to(device))

    def _select(self, device: torch.device, size: int, columns: Tensor) -> TextBatches:
        """Batches of some texts, without waiting for the device: shapes come from the lengths on the CPU."""
        if self._on_device is None or self._on_device[0].device != device:
            self._on_device = _moved(self.ids, self.rows, self.lengths, device)
        all_ids, all_rows, all_lengths = self._on_device
        own_lengths = self.lengths[columns]
        order, places = _by_length(own_lengths, size)
        batches = []
        for part in order.split(size):
            width = int(own_lengths[part].max())
            own = columns[part].to(device, non_blocking=True)
            rows = None if all_rows is None else all_rows[own, :width]
            batches.append(TextBatch(all_ids[own, :width], rows, all_lengths[own], self._num_shared))
        return TextBatches(batches, None if places is None else places.to(device, non_blocking=True))


def texts_per_batch(device: torch.device, width: int, longest: int) -> int:
    """Texts that run together: few on a CPU, as many as memory allows on a GPU, which waits for each launch.

    Args:
        device: Where they run.
        width: The tower's hidden size.
        longest: Tokens of the longest text.

    >>> texts_per_batch(torch.device("cpu"), 512, 12)
    256
    """
    if device.type == "cpu":
        return TEXTS_ON_CPU
    if device.type != "cuda":
        return TEXTS_ON_GPU
    memory = torch.cuda.get_device_properties(device).total_memory
    fitting = int(memory * SHARE_OF_MEMORY) // (longest * width * BYTES_PER_TOKEN)
    return max(TEXTS_ON_CPU, min(TEXTS_ON_GPU, fitting))


def pad_rows(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Stack rows of unequal length into `[N, T]`, padded with `value` at the end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _by_length(lengths: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """The order in which texts run, and its inverse; one batch keeps the order of the texts."""
    if len(lengths) <= size:
        return torch.arange(len(lengths)), None
    order = lengths.argsort(stable=True)
    return order, order.argsort()


def _moved(
    ids: Tensor, rows: Tensor | None, lengths: Tensor, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Tensors on a device, rows counted from 1."""
    return ids.to(device), None if rows is None else (rows + 1).to(device), lengths.to(device)


def _num_shared(ids: Tensor, rows: Tensor | None, lengths: Tensor) -> int:
    """Leading tokens that all texts share: in their ids and in their learned vectors."""
    tokens = ids if rows is None else ids + (rows << 32)  # one number for both
    return shared_length([row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)])
