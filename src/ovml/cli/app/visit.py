"""What the server knows of one visitor, and what the page's events do with it, without Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import Any

from ovml.cli.app.gallery import PAGE, Tile, gallery
from ovml.cli.app.markup import NO_LABELS, NO_PICTURE, NOT_RANKED_YET, RANKING, SHOWN, SIDE, bars, error, view, where
from ovml.cli.app.pictures import Album, Thumbnails, read_fitted
from ovml.cli.app.ranking import Ranker, Ranking, typed_labels
from ovml.cli.app.uploads import used
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

TYPED = "none"
"""The choice of the typed labels rather than of a vocabulary."""
MOST_UPLOADS = 100
"""Images of one visitor that the gallery keeps."""
AT_ONCE = 4
"""Images of the gallery that are tagged before it is drawn again."""
SKIP = {"__type__": "update"}
"""As `gradio.skip()`: what is shown stays."""


@dataclass
class Visit:
    """One visitor's images.

    Attributes:
        uploads: Paths by number: -1 is the first upload, -2 the second. Images of the album have numbers from 0.
        chosen: Number of the image that is shown.
        ranking: Of that image; `None` until it is ranked.
        first: Position of the first image on the gallery's page; the newest upload has position 0.
        turn: Grows with each request that makes the gallery outdated.
    """

    uploads: dict[int, str] = field(default_factory=dict)
    chosen: int | None = None
    ranking: Ranking | None = None
    first: int = 0
    turn: int = 0

    def add(self, paths: Sequence[str]) -> None:
        """Add uploads and choose the first of them."""
        for path in reversed(paths):  # the first is the newest
            for number in [number for number, other in self.uploads.items() if other == path]:
                del self.uploads[number]
            self.uploads[min(self.uploads, default=0) - 1] = path
        for number in sorted(self.uploads)[MOST_UPLOADS:]:
            del self.uploads[number]
        self.choose(min(self.uploads))
        self.first = 0

    def choose(self, number: int) -> None:
        """Show another image."""
        self.chosen, self.ranking = number, None
        self.turn += 1


@dataclass(frozen=True)
class Asked:
    """What labels to rank.

    Args:
        text: The typed labels.
        source: Title of the vocabulary; `TYPED` for the typed labels.
        probabilities: See `Ranker.rank`.
        scoring: See `Ranker.rank`.
    """

    text: str = ""
    source: str = TYPED
    probabilities: bool = False
    scoring: str = ""


class Events:
    """What happens at a click. The model runs for one image at a time, whoever asks.

    Args:
        ranker: Ranks and locates labels.
        lists: Vocabularies by title.
        album: Images that all visitors see.
        max_labels: Maximum number of typed labels.
    """

    def __init__(
        self, ranker: Ranker, lists: Mapping[str, LabelVocabulary], album: Album | None = None, max_labels: int = 1000
    ) -> None:
        self.ranker, self.lists, self.album, self.max_labels = ranker, lists, album, max_labels
        self.thumbnails = Thumbnails()
        self._model = Lock()

    def add(self, paths: Sequence[str] | None, visit: Visit) -> tuple[str, str]:
        """Add uploaded images and show the first: the image, and what stands in place of its ranking."""
        if paths:
            visit.add(paths)
        return self.show(visit)

    def choose(self, visit: Visit, number: int | None) -> tuple[str, str]:
        """Show an image of the gallery; see `add`."""
        if number in visit.uploads or (number is not None and 0 <= number < self._images):
            visit.choose(number)
        return self.show(visit)

    def turn_page(self, visit: Visit, first: int | None) -> None:
        """Show the page of the gallery that holds a position."""
        if first is not None and 0 <= first < len(visit.uploads) + self._images:
            visit.first = first - first % PAGE
        visit.turn += 1

    def show(self, visit: Visit) -> tuple[str, str]:
        """The chosen image, and what stands in place of its ranking."""
        if visit.chosen is None:
            return NO_PICTURE, NOT_RANKED_YET
        try:
            image = read_fitted(self._path(visit, visit.chosen), SIDE)
        except UserError as problem:
            return NO_PICTURE, error(problem)
        return view(image, self._name(visit, visit.chosen)), RANKING

    def rank(self, visit: Visit, asked: Asked) -> Any:
        """The ranking of the chosen image; `SKIP` if another was chosen meanwhile."""
        visit.turn += 1
        visit.ranking, number = None, visit.chosen
        if number is None:
            return NOT_RANKED_YET
        try:
            vocabulary = self._vocabulary(asked)
            if vocabulary is None:
                return NO_LABELS
            with self._model:
                ranking = self.ranker.rank(self._path(visit, number), vocabulary, asked.probabilities, asked.scoring)
        except UserError as problem:
            return error(problem) if visit.chosen == number else SKIP
        if visit.chosen != number:
            return SKIP
        visit.ranking = ranking
        return bars(ranking, asked.source if asked.source in self.lists else "")

    def find(self, visit: Visit, rank: int | None) -> Any:
        """Where the label of a rank is; the image itself for rank 0."""
        ranking, number = visit.ranking, visit.chosen
        if ranking is None or number is None or rank is None or not 0 <= rank <= min(SHOWN, len(ranking.scores)):
            return SKIP
        if rank == 0:
            return self.show(visit)[0]
        try:
            self._path(visit, number)
            with self._model:
                found = where(*self.ranker.find(ranking, ranking.scores[rank - 1].label))
        except UserError as problem:
            found = error(problem)
        return found if visit.ranking is ranking else SKIP

    def tag(self, visit: Visit, asked: Asked) -> Iterator[str]:
        """The gallery: first without tags, then with more and more, until another is asked for."""
        total, turn = len(visit.uploads) + self._images, visit.turn
        if total < 2 and not self._images:
            yield ""
            return
        first = visit.first = min(visit.first, (total - 1) // PAGE * PAGE)
        numbers = islice(chain(sorted(visit.uploads), range(self._images)), first, first + PAGE)
        tiles = {number: self._tile(visit, number) for number in numbers}
        yield gallery(tiles, first, total, visit.chosen)
        try:
            vocabulary = self._vocabulary(asked)
            if vocabulary is None:
                return
            with self._model:
                self.ranker.embed(vocabulary, asked.probabilities, asked.scoring)
        except UserError:  # the ranking says it
            return
        for count, (number, tile) in enumerate(tiles.items(), start=1):
            tile.probabilities = asked.probabilities and self.ranker.calibrated
            if not tile.problem:
                try:
                    with self._model:
                        path = self._path(visit, number)
                        tile.tags = self.ranker.best(path, vocabulary, asked.probabilities, asked.scoring)
                except UserError as problem:
                    tile.problem = str(problem)
            if visit.turn != turn:
                return
            if count % AT_ONCE == 0 or count == len(tiles):
                yield gallery(tiles, first, total, visit.chosen)

    def _vocabulary(self, asked: Asked) -> LabelVocabulary | None:
        if asked.source in self.lists:
            return self.lists[asked.source]
        return typed_labels(asked.text, self.max_labels) if asked.text.strip(" \t\r\n,") else None

    def _tile(self, visit: Visit, number: int) -> Tile:
        tile = Tile(self._name(visit, number))
        try:
            tile.thumbnail = self.thumbnails.name(self._path(visit, number))
        except UserError as problem:
            tile.problem = str(problem)
        return tile

    @property
    def _images(self) -> int:
        return 0 if self.album is None else len(self.album)

    def _path(self, visit: Visit, number: int) -> str:
        if self.album is not None and number >= 0:
            return self.album[number]
        path = visit.uploads.get(number)
        if path is None:
            raise UserError("the image is not kept any more; upload it again")
        used(path)
        return path

    def _name(self, visit: Visit, number: int) -> str:
        if self.album is not None and number >= 0:
            return self.album.name(number)
        return Path(visit.uploads.get(number, "")).name
