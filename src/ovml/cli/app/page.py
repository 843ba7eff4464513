"""The page's layout, in Gradio."""

# Annotations are evaluated: Gradio reads them.

from collections.abc import Iterator
from typing import Any

from ovml.cli.app.markup import NO_PICTURE, NOT_RANKED_YET, head
from ovml.cli.app.visit import TYPED, Asked, Events, Visit
from ovml.utils.resources import RESOURCES

HOUR = 60 * 60


def build_page(events: Events, model_name: str = "", typed: str = "", chosen: str = TYPED) -> Any:
    """Lay out the page.

    Args:
        events: What happens at a click.
        model_name: Shown in the page's head.
        typed: Labels that stand in the text field at the start.
        chosen: Title of the vocabulary that is chosen at the start; `TYPED` for the typed labels.

    Returns:
        A `gradio.Blocks`.
    """
    import gradio as gr

    def add(paths: list[str] | None, visit: Visit) -> tuple[None, Visit, str, str]:
        return None, visit, *events.add(paths, visit)

    def choose(visit: Visit, event: gr.EventData) -> tuple[Visit, str, str]:
        return visit, *events.choose(visit, _number(event, "picture"))

    def turn_page(visit: Visit, event: gr.EventData) -> None:
        events.turn_page(visit, _number(event, "first"))

    def picture(visit: Visit) -> str:
        return events.show(visit)[0]

    def asked(text: str, source: str, *more: bool | str) -> Asked:
        scoring = next((choice for choice in more if isinstance(choice, str)), "")
        return Asked(text, source, True in more, scoring)

    def rank(visit: Visit, text: str, source: str, *more: bool | str) -> Any:
        return events.rank(visit, asked(text, source, *more))

    def find(visit: Visit, event: gr.EventData) -> Any:
        return events.find(visit, _number(event, "rank"))

    def tag(visit: Visit, text: str, source: str, *more: bool | str) -> Iterator[str]:
        yield from events.tag(visit, asked(text, source, *more))

    with gr.Blocks(title="ovml", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head(model_name), elem_id="head")
        visit = gr.State(Visit(), time_to_live=HOUR)
        with gr.Row(equal_height=False, elem_id="ask"):
            text = gr.Textbox(
                typed,
                label="Labels",
                info=f"any words, separated by commas; Enter ranks them; at most {events.max_labels:,}",
                placeholder="red car, beach at sunset, two dogs playing",
                lines=1,
                max_lines=8,
                autofocus=True,
                scale=5,
                min_width=260,
                elem_id="labels",
            )
            source = gr.Dropdown(
                [TYPED, *events.lists],
                value=chosen,
                label="Or a vocabulary",
                info="instead of the typed labels",
                scale=2,
                min_width=200,
                elem_id="source",
            )
            form = [visit, text, source]
            if scorings := events.ranker.scorings:
                form.append(
                    gr.Dropdown(
                        scorings,
                        value=scorings[0],
                        label="Scoring",
                        info="how images are scored",
                        scale=1,
                        min_width=170,
                        elem_id="scoring",
                    )
                )
            with gr.Column(scale=1, min_width=110):
                button = gr.Button("Rank", variant="primary", elem_id="rank")
                if events.ranker.calibrated:
                    form.append(gr.Checkbox(label="probabilities", elem_id="probabilities"))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300, elem_classes="ovml-side"):
                drop = upload_field()
                image = gr.HTML(NO_PICTURE, elem_id="image")
            with gr.Column(scale=6, min_width=300, elem_classes="ovml-side"):
                result = gr.HTML(NOT_RANKED_YET, js_on_load=_script("bar"), elem_id="result")
        gallery = gr.HTML("", js_on_load=_script("tile"), elem_id="gallery")

        last: Any = {"trigger_mode": "always_last", "api_visibility": "private"}
        shown = [visit, image, result]
        page.load(None, js=_script("load"), api_visibility="private")
        page.load(tag, form, gallery, show_progress="hidden", **last)
        text.input(None, None, source, js=f"() => '{TYPED}'", **last)
        asks = [button.click, source.input, *(box.input for box in form[3:])]
        for begun in (
            text.submit(lambda visit: (TYPED, picture(visit)), visit, [source, image], show_progress="hidden", **last),
            gr.on(asks, picture, visit, image, show_progress="hidden", **last),
            drop.upload(add, [drop, visit], [drop, *shown], **last),
            gallery.click(choose, visit, shown, **last),
        ):
            ranked = begun.then(rank, form, result, show_progress="minimal", **last)
            ranked.then(tag, form, gallery, show_progress="hidden", **last)
        result.click(find, visit, image, show_progress="minimal", **last)
        gallery.input(turn_page, visit, None, **last).then(tag, form, gallery, show_progress="hidden", **last)
    page.state_session_capacity = 1000
    return page


def upload_field() -> Any:
    """Where images are dropped: a `gradio.File` that gives the paths of the files as they were uploaded."""
    import gradio as gr

    drop = gr.File(
        file_count="multiple", file_types=["image"], label="Images", height=96, show_label=False, elem_id="drop"
    )
    move = drop.async_move_resource_to_block_cache

    async def move_uploaded(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("images are uploaded, not fetched from an address", print_exception=False)
        return await move(path)

    # `load_image` reads the files and reports errors; URLs are not fetched. Methods are replaced because Gradio writes
    # a stub file beside the source of each subclass.
    drop.preprocess = lambda payload: [] if payload is None else [file.path for file in payload]
    drop.async_move_resource_to_block_cache = move_uploaded
    return drop


def _script(name: str) -> str:
    return (RESOURCES / "page" / f"{name}.js").read_text(encoding="utf-8")


def _number(event: Any, name: str) -> int | None:
    """A number that a script of the page sent; others may send anything."""
    try:
        value = getattr(event, name, None)
    except TypeError:
        return None
    return value if type(value) is int else None
