"""NUS-WIDE as its authors publish it: lists of images, and tables of 0 and 1 as text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovml.data.base import Split
from ovml.data.cache import Table, cached_table, ragged, record_batch
from ovml.data.samplers import Indices
from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.progress import track
from ovml.vocabulary import LabelVocabulary, label_key, read_names

logger = logging.getLogger(__name__)

SOURCE = "https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html"
BLOCK_BYTES = 4 << 20


class Layout:
    """A form in which NUS-WIDE is on disk. A subclass has `exhaustive` and `table`.

    Args:
        root: Folder of the data set.
        cache_dir: See `ovml.data.cache.cache_root`.
    """

    seen_list: str | None = "Concepts925.txt"

    def __init__(self, root: Path, cache_dir: str | None) -> None:
        self.root = root
        self.cache_dir = cache_dir

    @cached_property
    def vocabulary(self) -> LabelVocabulary:
        """Seen: those of `seen_list` or, without it, the tags that are not concepts. Unseen: the concepts."""
        return read_vocabulary(self.root, self.seen_list)


class OfficialFiles(Layout):
    """The official distribution.

    The unseen labels are those annotated by people (`Groundtruth`). `AllTags81.txt`, `Train_Tags81.txt` and
    `Test_Tags81.txt` only say whether a Flickr user gave the word as a tag, and are never read.
    """

    exhaustive = True
    seen_list = None

    def table(self, split: Split) -> Table:
        """Rows of a split.

        Raises:
            UserError: A file is missing or malformed.
        """
        tag_list = tag_file(self.root)
        reader = SplitReader(self.root, split)
        matrices = self._matrices(split, read_names(tag_list))
        tables = [file for matrix in matrices for file in (matrix.own, matrix.whole)]
        files = [tag_list, concept_file(self.root), reader.list, reader.all_list, *tables]
        inputs = [file for file in files if file.is_file()]

        def make(counts: dict[str, Any]) -> Iterator[pa.RecordBatch]:
            found = [reader.read(matrix) for matrix in track(matrices, f"reading the {split} labels")]
            if reader.replaced:
                counts["files with a wrong value, those of all images read instead"] = reader.replaced
            rows = np.concatenate([ones.rows for ones in found])
            ids = np.concatenate([matrix.ids[ones.columns] for matrix, ones in zip(matrices, found, strict=True)])
            order = np.lexsort((ids, rows))
            order = order[ids[order] >= 0]
            paths = [f"{self.root}/Flickr/{name}" for name in reader.images]
            yield record_batch(paths, ragged(rows[order], ids[order], len(paths)), None, reader.images)

        return cached_table(self.cache_dir, f"nuswide-{split}", inputs, {"root": str(self.root)}, make)

    def _matrices(self, split: Split, tags: Sequence[str]) -> list[Matrix]:
        part = split.capitalize()
        ids = {label_key(name): i for i, name in enumerate(self.vocabulary.seen)}
        ids_of_tags = np.array([ids.get(label_key(tag), -1) for tag in tags])
        folder, truth = self.root / "NUS_WID_Tags", self.root / "Groundtruth"
        matrices = [Matrix(folder / f"{part}_Tags1k.dat", folder / "AllTags1k.txt", ids_of_tags)]
        for number, name in enumerate(self.vocabulary.unseen, start=len(ids)):
            own = truth / "TrainTestLabels" / f"Labels_{name}_{part}.txt"
            matrices.append(Matrix(own, truth / "AllLabels" / f"Labels_{name}.txt", np.array([number])))
        return matrices


class Matrix(NamedTuple):
    """A table of 0 and 1 with one line per image.

    Attributes:
        own: File of the split's images.
        whole: File of all images; one of the two must exist.
        ids: Label id of each column; -1 for columns that are no label.
    """

    own: Path
    whole: Path
    ids: Indices


class Ones(NamedTuple):
    """Row and column of each 1 in a table of 0 and 1 `[V]`."""

    rows: Indices
    columns: Indices


class SplitReader:
    """Reads a split's lines from its own file or, without one, by image name from the file of all images."""

    def __init__(self, root: Path, split: Split) -> None:
        self.list = need_file(root / "ImageList" / f"{split.capitalize()}Imagelist.txt")
        self.all_list = root / "ImageList" / "Imagelist.txt"
        self.replaced = 0

    @cached_property
    def images(self) -> list[str]:
        """The split's images."""
        return read_image_list(self.list)

    def read(self, matrix: Matrix) -> Ones:
        """Ones of the split's images."""
        if need_file(matrix.own, matrix.whole) == matrix.own:
            try:
                return read_ones(matrix.own, len(matrix.ids), len(self.images))
            except WrongValueError as error:
                # The official Labels_lake_Train.txt has such a line (78,372); Labels_lake.txt is correct.
                if not (matrix.whole.is_file() and self.all_list.is_file()):
                    raise UserError(
                        f"{error.what}; add {matrix.whole} and {self.all_list}, which are read instead ({SOURCE})"
                    ) from error
                logger.warning("%s; %s is read instead", error.what, matrix.whole)
                self.replaced += 1
        ones = read_ones(matrix.whole, len(matrix.ids), len(self._places))
        rows = self._places[ones.rows]
        return Ones(rows[rows >= 0], ones.columns[rows >= 0])

    @cached_property
    def _places(self) -> Indices:
        """Row in the split of each image; -1 for images of the other split."""
        every, images = pa.array(read_image_list(need_file(self.all_list))), pa.array(self.images)
        for name in images.filter(pc.invert(pc.is_in(images, every)))[:1].to_pylist():
            raise UserError(f"{self.list}: {name} is not listed in {self.all_list}; download both again from {SOURCE}")
        places: Indices = pc.index_in(every, images).fill_null(-1).to_numpy()
        return places


class WrongValueError(UserError):
    """A table of 0 and 1 holds another value."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}; download the file again from {SOURCE}")


def read_ones(path: Path, width: int, num_rows: int) -> Ones:
    r"""Read a text file of `num_rows` lines with `width` values of 0 or 1.

    Values are separated by blanks or tabs, which may end a line too; lines end with `\n` or `\r\n`; blank lines are
    skipped. The file is read in blocks, so memory depends only on the number of ones.

    Raises:
        WrongValueError: A value is neither 0 nor 1.
        UserError: A line has the wrong number of values, or the file the wrong number of lines.
    """
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    lines = done = 0
    for block in _blocks(path):
        places = np.flatnonzero(block > ord(" "))
        values = block[places] - np.uint8(ord("0"))  # characters below `0` wrap around to above 1
        ends = np.flatnonzero(block == ord("\n"))
        counts = np.diff(np.searchsorted(places, ends), prepend=0)
        two_characters = np.diff(places) == 1
        if (values > 1).any() or two_characters.any() or ((counts != width) & (counts != 0)).any():
            _refuse(path, block.tobytes(), width, lines)
        ones = np.flatnonzero(values)
        rows.append(ones // width + done)
        columns.append(ones % width)
        done += len(values) // width
        lines += len(ends)
    if done != num_rows:
        raise UserError(
            f"{path}: {done:,} lines, but {num_rows:,} images are listed; the file or the list of images is "
            f"incomplete or of another version; download both again from {SOURCE}"
        )
    return Ones(np.concatenate(rows), np.concatenate(columns))


def _blocks(path: Path) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """The bytes of a file in blocks of whole lines."""
    rest = b""
    with open(path, "rb") as file:
        while chunk := file.read(BLOCK_BYTES):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield np.frombuffer(whole + newline, np.uint8)
    if rest.strip():
        yield np.frombuffer(rest + b"\n", np.uint8)


def _refuse(path: Path, block: bytes, width: int, lines_before: int) -> None:
    """Raise the error about the first malformed line."""
    for number, line in enumerate(block.split(b"\n"), start=lines_before + 1):
        values = line.split()
        for value in values:
            if value not in (b"0", b"1"):
                raise WrongValueError(f"{path}, line {number}: {value[:20].decode('latin1')!r} is neither 0 nor 1")
        if values and len(values) != width:
            raise UserError(
                f"{path}, line {number}: {len(values):,} values, {width:,} expected; download it again from {SOURCE}"
            )


def read_image_list(path: Path) -> list[str]:
    r"""Read image names, `<tag>/<n>_<id>.jpg`, from a list with one `<tag>\<n>_<id>.jpg` per line.

    Raises:
        UserError: The list is empty, is not text, lists an image twice, or has a malformed line.
    """
    text = read_text(path, "image list", f"one <tag>\\<n>_<id>.jpg per line; it can be downloaded from {SOURCE}")
    names = []
    for number, line in enumerate(text.replace("\\", "/").splitlines(), start=1):
        if name := line.strip():
            if name.count("/") != 1:
                raise UserError(f"{path}, line {number}: {name!r}, but <tag>/<n>_<id>.jpg is expected; fix the list")
            names.append(name)
    check_image_names(names, path)
    return names


def check_image_names(names: Sequence[str], path: Path) -> None:
    """Raise a `UserError` if a list has no image, or an image twice."""
    if not names:
        raise UserError(f"{path}: lists no image; download it again from {SOURCE}")
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise UserError(f"{path}: {name} is listed {times} times; each image counts once, so keep one of them")


def read_vocabulary(root: Path, seen: str | None = None) -> LabelVocabulary:
    """Read the vocabulary, whose unseen labels are the concepts.

    Args:
        root: Folder of the lists.
        seen: File of the seen labels. Without it, the seen labels are the tags that are not concepts.
    """
    concepts = read_names(concept_file(root))
    if seen and (root / seen).is_file():
        return LabelVocabulary(read_names(root / seen), concepts)
    known = set(map(label_key, concepts))
    tags = read_names(tag_file(root))
    return LabelVocabulary(tuple(tag for tag in tags if label_key(tag) not in known), concepts)


def tag_file(root: Path) -> Path:
    """File of the names of the 1,000 tags."""
    return need_file(root / "NUS_WID_Tags" / "TagList1k.txt")


def concept_file(root: Path) -> Path:
    """File of the names of the 81 concepts."""
    return need_file(root / "Concepts81.txt", root / "ConceptsList" / "Concepts81.txt")


def need_file(*choices: Path, source: str = SOURCE) -> Path:
    """Return the first file that exists.

    Raises:
        UserError: None exists.
    """
    for file in choices:
        if file.is_file():
            return file
    others = "".join(f", nor {file}" for file in choices[1:])
    raise UserError(f"{choices[0]}: no such file{others}; download it from {source}")
