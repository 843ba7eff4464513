"""What `ovml tag` prints and writes, given a tagger."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import progress

from ovml.inference.tag_files import image_name, tag_row
from ovml.inference.tag_output import Written
from ovml.inference.tagger import Tagger
from ovml.utils.console import console, notice, on_one_line, show, show_line, shows_progress, tsv_line, warn
from ovml.utils.errors import UserError


def print_tags(tagger: Tagger, images: Iterable[Path | str], form: str) -> None:
    """Print the ranked labels of each image.

    Args:
        tagger: Ranks the labels.
        images: Paths.
        form: One of `ovml.cli.tag.FORMATS`.
    """
    errors = number = 0
    for number, (image, tags) in enumerate(tagger.tag(images, on_error="row"), start=1):
        errors += isinstance(tags, UserError)
        if form == "jsonl":
            show_line(json.dumps(tag_row(image_name(image, number - 1), tags)))
        elif form == "table":
            _print_table(str(image), tags)
        elif isinstance(tags, UserError):
            warn(on_one_line(str(tags)))
        else:
            for label, score in tags:
                show_line(tsv_line(str(image), label, f"{score:.6f}"))
    _check_some_readable(errors, number)
    if errors:
        notice(f"{errors:,} of {number:,} images could not be read")


def _print_table(image: str, tags: Sequence[tuple[str, float]] | UserError) -> None:
    if isinstance(tags, UserError):
        show(on_one_line(str(tags)), style="red")
        return
    show(on_one_line(image), style="bold")
    if not tags:
        show("no label", style="dim")
    scores = [f"{score:.4f}" for _, score in tags]
    width = max(map(len, scores), default=0)
    for (label, _), score in zip(tags, scores, strict=True):
        show(f"{score:>{width}}  {on_one_line(label)}")


def write_tags(tagger: Tagger, images: Iterable[Path | str], out: Path, overwrite: bool, total: int | None) -> None:
    """Write the ranked labels of all images to a file, with a progress bar.

    Args:
        tagger: Ranks the labels.
        images: Paths.
        out: The file.
        overwrite: Whether to start over.
        total: Number of images, if it is known.
    """
    bar, task = _bar(total)

    def update(written: Written) -> None:
        if not task.started and written.resumed:
            notice(f"going on after {written.resumed:,} images of an interrupted run")
        _advance(bar, task, written.rows, written.resumed, written.errors)

    with bar:
        try:
            written = tagger.write(images, out, overwrite, update)
        except KeyboardInterrupt:
            notice("the same command goes on from here")
            raise
    before = f" ({written.resumed:,} of them before)" if written.resumed else ""
    lost = f"; {written.errors:,} could not be read" if written.errors else ""
    notice(f"{out}: {written.rows:,} images{before}, {task.fields['rate']:.1f} images/s{lost}")
    _check_some_readable(written.errors, written.rows)


def write_xmp(
    tagger: Tagger, images: Iterable[Path | str], parents: Mapping[str, str], xmp_name: str, total: int | None
) -> None:
    """Add the labels of each image to the sidecar beside it, with a progress bar.

    Args:
        tagger: Ranks the labels.
        images: Paths.
        parents: See `ovml.inference.xmp.write_sidecars`.
        xmp_name: One of `ovml.inference.xmp.NAMES`.
        total: Number of images, if it is known.
    """
    from ovml.inference.xmp import Sidecars, write_sidecars

    bar, task = _bar(total)

    def update(counts: Sidecars, error: UserError | None) -> None:
        if error is not None:
            warn(on_one_line(str(error)))
        _advance(bar, task, counts.images, 0, counts.errors)

    with bar:
        try:
            counts = write_sidecars(tagger, images, parents, xmp_name, update)
        except KeyboardInterrupt:
            notice("sidecars are written so far; the same command adds what is missing")
            raise
    lost = f"; {counts.errors:,} with an error" if counts.errors else ""
    notice(f"{counts.changed:,} sidecars written, of {counts.images:,} images{lost}")
    if counts.errors == counts.images > 0:
        raise UserError(f"no sidecar could be written, of {counts.images:,}; each has its reason above")


def _bar(total: int | None) -> tuple[progress.Progress, progress.Task]:
    """A progress bar for images, and its task, which has not started."""
    bar = progress.Progress(
        progress.BarColumn(),
        progress.TextColumn("{task.completed:,} images"),
        progress.TextColumn("{task.fields[rate]:.1f} images/s"),
        progress.TextColumn("{task.fields[errors]}"),
        progress.TimeElapsedColumn(),
        *([] if total is None else [progress.TimeRemainingColumn()]),
        console=console(stderr=True),
        transient=True,
        disable=not shows_progress(),
    )
    bar.add_task("", start=False, total=total, rate=0.0, errors="")
    (task,) = bar.tasks
    return bar, task


def _advance(bar: progress.Progress, task: progress.Task, images: int, before: int, errors: int) -> None:
    """Show the images so far, of which some were done before, and how many had an error."""
    if not task.started:
        bar.start_task(task.id)
    rate = (images - before) / max(task.elapsed or 0, 1e-9)
    bar.update(task.id, completed=images, rate=rate, errors=f"{errors:,} unreadable" if errors else "")


def _check_some_readable(errors: int, number: int) -> None:
    if errors == number > 0:
        raise UserError(f"no image could be read, of {number:,}; each has its reason beside it")
