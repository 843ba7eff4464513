"""The page's layout and events, in Gradio."""

# Annotations are evaluated: Gradio reads them.

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ovml.cli.app.markup import NOT_FOUND_YET, NOT_RANKED_YET, ON_CLICK, SHOWN, bars, error, head, where
from ovml.cli.app.ranking import Ranker, Ranking, typed_labels
from ovml.cli.app.uploads import used
from ovml.data.synthetic.scenes import draw_scene
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

TYPED = "typed below"
"""The choice for labels that are typed."""
EXAMPLES = (
    ("test", 3, "red circle, blue fish, yellow star, white heart, moon, pink square, green cross"),
    ("pretrain", 136, "red heart, yellow star, blue fish, dotted purple bolt, white moon, black ring"),
    ("pretrain", 45, "red star, black fish, blue moon, white circle, green heart, pink square"),
)
"""Scenes of the demo data set: split, index, and labels to rank for them."""
HOUR = 60 * 60
NOTHING = (None, NOT_RANKED_YET, NOT_FOUND_YET)
Answer = tuple[str | None, Ranking | None, str]
"""An image, its ranking, and the ranking or an error as HTML."""


def build_page(
    ranker: Ranker,
    lists: Mapping[str, LabelVocabulary],
    max_labels: int = 1000,
    model_name: str = "",
    examples: Path | None = None,
) -> Any:
    """Lay out the page.

    Args:
        ranker: Ranks and locates labels.
        lists: Label lists to choose from, by title; the first is the default.
        max_labels: Maximum number of typed labels.
        model_name: Shown in the page's head.
        examples: A new folder for scenes of the demo data set, which are offered.

    Returns:
        A `gradio.Blocks`.
    """
    import gradio as gr

    def rank(image: str | None, source: str, text: str, probabilities: bool = False) -> Answer:
        if image is None:
            return None, None, NOT_RANKED_YET
        try:
            used(image)
            vocabulary = typed_labels(text, max_labels) if source == TYPED else lists[source]
            ranking = ranker.rank(image, vocabulary, probabilities)
        except UserError as problem:
            return image, None, error(problem)
        return image, ranking, bars(ranking)

    def show(answer: Answer, image: str | None) -> tuple[Ranking | None, str, str]:
        # A ranking of the former image must not stand beside the new one.
        return (*answer[1:], NOT_FOUND_YET) if answer[0] == image else NOTHING

    def find(ranking: Ranking | None, event: gr.EventData) -> str:
        if ranking is None:
            return NOT_FOUND_YET
        shown = ranking.scores[:SHOWN]
        used(ranking.image)
        try:
            return where(*ranker.find(ranking, shown[int(event.rank) - 1].label))
        except UserError as problem:
            return error(problem)

    scenes = [(path, TYPED, labels) for path, labels in _draw_examples(examples)] if examples else []

    with gr.Blocks(title="ovml", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head(model_name), elem_id="head")
        answer, ranked = (gr.State(None, time_to_live=HOUR) for _ in range(2))
        with gr.Row():
            with gr.Column(scale=8, min_width=300):
                image = upload_field()
                source = gr.Dropdown([*lists, TYPED], value=next(iter(lists), TYPED), label="Labels", elem_id="source")
                text = gr.Textbox(
                    label="Typed labels",
                    info=f"one a line or separated by commas; at most {max_labels:,}",
                    lines=3,
                    max_lines=10,
                    visible=not lists,
                    elem_id="labels",
                )
                form = [image, source, text]
                if ranker.calibrated:
                    form.append(gr.Checkbox(label="probabilities", elem_id="probabilities"))
                button = gr.Button("Rank", variant="primary", elem_id="rank")
                dataset = gr.Dataset(
                    label="Examples: click one",
                    components=["image"],
                    samples=[[path] for path, *_ in scenes],
                    type="index",
                    layout="gallery",
                    visible=bool(scenes),
                    elem_id="examples",
                )
            with gr.Column(scale=10, min_width=340):
                result = gr.HTML(NOT_RANKED_YET, js_on_load=ON_CLICK, elem_id="result")
            with gr.Column(scale=9, min_width=320):
                place = gr.HTML(NOT_FOUND_YET, elem_id="where")
        # The model runs one event at a time.
        private: Any = {"api_visibility": "private"}
        alone: Any = {"concurrency_id": "model", "concurrency_limit": 1, **private}
        shown = [ranked, result, place]
        button.click(rank, form, answer, **alone).then(show, [answer, image], shown, **private)
        result.click(find, ranked, place, **alone)
        source.change(lambda choice: gr.update(visible=choice == TYPED), source, text, **private)
        chosen = dataset.click(
            lambda index: (*scenes[index], *NOTHING), dataset, [image, source, text, *shown], **private
        )
        chosen.then(rank, form, answer, **alone).then(show, [answer, image], shown, **private)
        # In the browser, at once: the server might do it after a ranking that is asked for next.
        image.input(None, None, shown[1:], js=f"() => {json.dumps(NOTHING[1:])}", **private)
    return page


def upload_field() -> Any:
    """Where an image is dropped: a `gradio.Image` that gives the path of the file as it was uploaded."""
    import gradio as gr

    image = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=280, elem_id="image")
    move = image.async_move_resource_to_block_cache

    async def move_uploaded(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("images are uploaded, not fetched from an address", print_exception=False)
        return await move(path)

    # `load_image` reads the file and reports errors; URLs are not fetched. Methods are replaced because Gradio writes a
    # stub file beside the source of each subclass.
    image.preprocess = lambda payload: None if payload is None else payload.path
    image.async_move_resource_to_block_cache = move_uploaded
    return image


def _draw_examples(folder: Path) -> list[tuple[str, str]]:
    """Files of the examples, and their labels."""
    folder.mkdir()
    drawn = []
    for split, index, labels in EXAMPLES:
        path = folder / f"{split} {index}.png"
        # Enlarged, since the page shows it at its own size.
        draw_scene(0, split, index).image.resize((360, 360), Image.Resampling.BICUBIC).save(path)
        drawn.append((str(path), labels))
    return drawn
