"""Files of tags: JSON lines, CSV and Parquet, each kept in a part beside its place until it is complete."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ovml.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from ovml.inference.tagger import LabelScore


def utf8(text: str) -> str:
    r"""Text with a file's name in it, which may be bytes of any kind: those that are no UTF-8 are written as `\xff`.

    >>> utf8(os.fsdecode(b"a\xff.png"))
    'a\\xff.png'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class TagRow(NamedTuple):
    """What is written of an image: its path, its labels, and why it has none where it cannot be read."""

    image: str
    labels: Sequence[LabelScore]
    error: str | None = None

    @classmethod
    def of(cls, image: str, result: Sequence[LabelScore] | UserError) -> TagRow:
        """The row of what `Tagger.tag` yields."""
        return cls(image, (), utf8(str(result))) if isinstance(result, UserError) else cls(image, result)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON and Parquet have it, scores with six decimals."""
        labels = [{"label": label, "score": round(score, 6)} for label, score in self.labels]
        return {"image": self.image, "labels": labels, "error": self.error}


class TagFile(ABC):
    """A file of tags that is being written.

    Args:
        out: Where it appears when it is complete.
        top_k: Most labels that a row has.

    Attributes:
        part: Where it is until then.
        rows: Rows written so far, by an earlier run or this one.
        last_image: Of the last row of an earlier run.
    """

    def __init__(self, out: Path, top_k: int) -> None:
        self.out = out
        self.part = out.with_name(out.name + ".part")
        self.top_k = top_k
        self.rows = 0
        self.last_image: str | None = None

    @abstractmethod
    def open(self, batch_size: int) -> None:
        """Begin, or go on after the whole batches of an earlier run; what was torn is dropped."""

    @abstractmethod
    def write(self, rows: Sequence[TagRow]) -> None:
        """Add a batch."""

    @abstractmethod
    def close(self) -> None:
        """Stop for now, keeping the part."""

    @abstractmethod
    def finish(self) -> None:
        """Put the complete file in its place."""

    @abstractmethod
    def discard(self) -> None:
        """Delete the part of an earlier run."""


class TextFile(TagFile):
    """Rows as lines of text."""

    header: bytes = b""

    @abstractmethod
    def line(self, row: TagRow) -> str:
        """A row with its line end."""

    @abstractmethod
    def image_of(self, line: str) -> str:
        """The image of a row that was read back."""

    def is_whole(self, text: bytes) -> bool:
        """Whether text from the start of a row to a line end is a whole row."""
        return True

    def open(self, batch_size: int) -> None:
        """Drop a torn row with the batch that it is in.

        Batches so keep their places, and every score is what it is in an unbroken run, to the last bit.
        """
        end, last = 0, b""
        if self.part.exists():
            with open(self.part, "rb") as file:
                found = self._rows(file)
                if next(found, None) == self.header:
                    end = len(self.header)
                    while len(batch := list(islice(found, batch_size))) == batch_size:
                        end, last = end + sum(map(len, batch)), batch[-1]
                        self.rows += batch_size
        if last:
            try:
                self.last_image = self.image_of(last.decode())
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise UserError(
                    f"{self.part}: row {self.rows:,} is damaged; delete it, or use --overwrite to begin anew"
                ) from error
        self._file: IO[bytes] = open(self.part, "r+b" if self.part.exists() else "wb")  # noqa: SIM115 - see close
        self._file.truncate(end)
        self._file.seek(end)
        if end == 0:
            self._file.write(self.header)

    def _rows(self, file: IO[bytes]) -> Iterator[bytes]:
        if not self.header:
            yield b""
        row = b""
        for line in file:
            row += line
            if row.endswith(b"\n") and self.is_whole(row):
                yield row
                row = b""

    def write(self, rows: Sequence[TagRow]) -> None:
        """Add a batch, and hand it to the disk."""
        self._file.write("".join(map(self.line, rows)).encode())
        self._file.flush()
        self.rows += len(rows)

    def close(self) -> None:
        """Close the part."""
        self._file.close()

    def finish(self) -> None:
        """Rename the part."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.part.replace(self.out)

    def discard(self) -> None:
        """Delete the part."""
        self.part.unlink(missing_ok=True)


class JSONLines(TextFile):
    """`{"image": ..., "labels": [{"label": ..., "score": ...}, ...], "error": null}` a line."""

    def line(self, row: TagRow) -> str:
        """A JSON object."""
        return json.dumps(row.to_dict(), ensure_ascii=False) + "\n"

    def image_of(self, line: str) -> str:
        """The object's image."""
        return str(json.loads(line)["image"])


class CSV(TextFile):
    """Columns `image, error, label_1, score_1, label_2, ...`, best label first."""

    def __init__(self, out: Path, top_k: int) -> None:
        super().__init__(out, top_k)
        columns = [f"{name}_{i}" for i in range(1, top_k + 1) for name in ("label", "score")]
        self.header = _csv_line(["image", "error", *columns]).encode()

    def line(self, row: TagRow) -> str:
        """Cells of labels that a row has not are empty."""
        cells = [cell for label, score in row.labels for cell in (label, f"{score:.6f}")]
        return _csv_line([row.image, row.error or "", *cells, *[""] * (2 * (self.top_k - len(row.labels)))])

    def image_of(self, line: str) -> str:
        """The first cell."""
        return next(csv.reader(io.StringIO(line, newline="")))[0]

    def is_whole(self, text: bytes) -> bool:
        """Whether the line end is outside quotes; inside, it belongs to a cell."""
        return text.count(b'"') % 2 == 0


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class ParquetParts(TagFile):
    """Columns `image`, `labels` (a list of `label` and `score`) and `error`.

    Parquet cannot be added to: the part is a folder of numbered files, joined at the end. A new one is begun when the
    rows of one come to `part_labels` labels (or rows), and after `part_seconds`, so that a kill costs no more.
    """

    part_labels = 2**16
    part_seconds = 20.0
    group_bytes = 2**25

    def open(self, batch_size: int) -> None:
        """Go on after the last file that is whole."""
        self.part.mkdir(exist_ok=True)
        for unfinished in self.part.glob("*.tmp"):
            unfinished.unlink()
        self._buffer: list[TagRow] = []
        self._parts: list[Path] = []
        for path in sorted(self.part.glob("*.parquet")):
            table = read_parquet(path) if path == self._next_part() else None
            if table is None:  # torn, or after one that was
                path.unlink()
                continue
            self._parts.append(path)
            self.rows += len(table)
            self.last_image = table["image"][-1].as_py()
        self._begun = time.monotonic()

    def _next_part(self) -> Path:
        return self.part / f"{len(self._parts):08d}.parquet"

    def write(self, rows: Sequence[TagRow]) -> None:
        """Add a batch, and write a file if it is time."""
        self._buffer += rows
        self.rows += len(rows)
        size = sum(1 + len(row.labels) for row in self._buffer)
        if size >= self.part_labels or time.monotonic() - self._begun >= self.part_seconds:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            write_parquet(arrow_table(self._buffer), self._next_part())
            self._parts.append(self._next_part())
        self._buffer = []
        self._begun = time.monotonic()

    def close(self) -> None:
        """Write what there is."""
        self._flush()

    def finish(self) -> None:
        """Join the files, in row groups of some size."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._flush()
        joined = self.part / "joined.tmp"
        with pq.ParquetWriter(joined, tag_schema(), compression="zstd") as writer:
            group: list[pa.Table] = []
            for path in self._parts:
                group.append(pq.read_table(path))
                if sum(table.nbytes for table in group) >= self.group_bytes:
                    writer.write_table(pa.concat_tables(group))
                    group = []
            if group:
                writer.write_table(pa.concat_tables(group))
        joined.replace(self.out)
        self.discard()

    def discard(self) -> None:
        """Delete the files and their folder."""
        if self.part.is_dir():
            for path in [*self.part.glob("*.parquet"), *self.part.glob("*.tmp")]:
                path.unlink()
            self.part.rmdir()


def tag_schema() -> pa.Schema:
    """The columns of a Parquet file of tags."""
    import pyarrow as pa

    label = pa.struct([("label", pa.string()), ("score", pa.float32())])
    return pa.schema([("image", pa.string()), ("labels", pa.list_(label)), ("error", pa.string())])


def arrow_table(rows: Sequence[TagRow]) -> pa.Table:
    """Rows as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist([row.to_dict() for row in rows], schema=tag_schema())


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a file that is either whole or not there."""
    import pyarrow.parquet as pq

    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, aside, compression="zstd")
    aside.replace(path)


def read_parquet(path: Path) -> pa.Table | None:
    """The images of a file; `None` where it is torn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=["image"])
    except (pa.ArrowInvalid, OSError):
        return None


FILES: dict[str, type[TagFile]] = {".jsonl": JSONLines, ".csv": CSV, ".parquet": ParquetParts}
"""By the ending of the name."""
