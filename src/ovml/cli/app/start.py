"""What the page shows at the start: labels, vocabularies and images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ovml.cli.app.pictures import Album
from ovml.cli.app.ranking import packaged_vocabularies, vocabularies
from ovml.cli.app.visit import TYPED
from ovml.data.synthetic.scenes import LABELS, draw_scene
from ovml.model import OpenVocabularyModel
from ovml.utils.resources import DEMO
from ovml.vocabulary import LabelVocabulary

EXAMPLES = range(6)
"""Indices of the demo data set's test scenes that are offered."""


@dataclass(frozen=True)
class Start:
    """Labels and images at the start.

    Args:
        lists: Vocabularies to choose from, by title.
        chosen: Title of the chosen one; `TYPED` for the typed labels.
        typed: Labels in the text field.
        album: Images that all visitors see.
    """

    lists: Mapping[str, LabelVocabulary]
    chosen: str = TYPED
    typed: str = ""
    album: Album | None = None


def start(
    model: OpenVocabularyModel,
    name: str,
    album: Album | None,
    examples: Path,
    labels: LabelVocabulary | None = None,
    vocabulary: str | None = None,
    typed: bool = False,
) -> Start:
    """Choose labels and images: those of the command line, else those of the model.

    Args:
        model: Offers its vocabulary. Example images are drawn if it knows the labels of the demo data set.
        name: The model's name.
        album: Images of the command line.
        examples: A new folder for example images.
        labels: Labels of the command line.
        vocabulary: Name of a packaged vocabulary that they are.
        typed: Whether they stand in the text field rather than among the vocabularies.
    """
    given = None if typed or vocabulary is not None else labels
    packaged = packaged_vocabularies()
    lists = {**vocabularies(model, name, given), **packaged}
    own = model.vocabulary
    if vocabulary is not None:
        chosen = next(title for title in packaged if title.startswith(f"{vocabulary} "))
    else:
        chosen = TYPED if typed or (labels is None and own is None) else next(iter(lists))
    text = ", ".join(labels) if labels is not None and typed else ""
    if album is None and (name == DEMO or (own is not None and set(own.names) <= set(LABELS))):
        album, drawn = _draw_examples(examples)
        if chosen == TYPED and not text:
            text = ", ".join(drawn)
    return Start(lists, chosen, text, album)


def _draw_examples(folder: Path) -> tuple[Album, Iterable[str]]:
    """Example images, and labels of them: two words each, two labels per image."""
    folder.mkdir()
    labels: dict[str, None] = {}
    for index in EXAMPLES:
        scene = draw_scene(0, "test", index)
        # Enlarged, since the page shows it at its own size.
        scene.image.resize((360, 360), Image.Resampling.BICUBIC).save(folder / f"scene {index}.png")
        names = [LABELS[label] for label in scene.label_ids]
        labels.update(dict.fromkeys([name for name in names if len(name.split()) == 2][:2]))
    return Album(folder), labels
