"""What a run says: at the start of a stage what learns, on what, for how long and where; at the end the results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from ovml.metrics.tables import results_table
from ovml.training.precision import precision_note
from ovml.training.run_folder import RunFolder
from ovml.utils.console import notice, show

MOST_NAMES = 5
"""Names of modules in a line."""


def learned_summary(module: nn.Module, learned: Iterable[str]) -> str:
    """Number and names of the parameters that learn, of all but the teacher's.

    Args:
        module: An `OVMultiLabelClassifier`, before a strategy wraps it.
        learned: Names of its parameters that learn.
    """
    sizes = {name: p.numel() for name, p in module.named_parameters() if not name.startswith("teacher.")}
    learned = [name for name in dict.fromkeys(learned) if name in sizes]
    names = _merged([_shorter(name) for name in dict.fromkeys(_largest_modules(sizes, learned))])
    more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    count = sum(sizes[name] for name in learned)
    return f"{count:,} of {sum(sizes.values()):,} parameters: {', '.join([*names[:MOST_NAMES], *more])}"


def _largest_modules(every: Iterable[str], learned: Iterable[str]) -> list[str]:
    """For each parameter the largest module in which all parameters learn, or its own name."""
    known, learning = (Counter(above for name in names for above in _above(name)) for names in (every, learned))
    return [next(above for above in _above(name) if known[above] == learning[above]) for name in learned]


def _above(name: str) -> list[str]:
    """The modules around a parameter inside of `model` or `objective`, the outermost first, and its own name."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(1, len(parts))]


def _shorter(name: str) -> str:
    """A name without what all of its kind share."""
    return re.sub(r"^(model|objective)\.|(?<=\.)(vision_model|encoder|default)\.", "", name).removesuffix(".weight")


def _merged(names: Iterable[str]) -> list[str]:
    """Names of which those that differ in their first number alone, by one, are one.

    >>> _merged(["layers.4.q", "layers.5.q", "layers.9.q", "head"])
    ['layers.4-5.q', 'layers.9.q', 'head']
    """
    runs: dict[tuple[str, ...], list[list[int]]] = {}
    for name in names:
        before, *number_and_rest = re.split(r"(?<=\.)(\d+)(?=\.|$)", name, maxsplit=1)
        own = runs.setdefault((before, *number_and_rest[1:]), [])
        number = list(map(int, number_and_rest[:1]))
        if number and own and own[-1][-1] + 1 == number[0]:
            own[-1] += number
        else:
            own.append(number)
    shown = {key: ["-".join(map(str, sorted({*run[:1], *run[-1:]}))) for run in own] for key, own in runs.items()}
    return [before + number + "".join(rest) for (before, *rest), numbers in shown.items() for number in numbers]


def stage_lines(trainer: Any, module: Any, learns: str) -> list[str]:
    """What a stage that starts is about, a line each.

    Args:
        trainer: A Lightning `Trainer` whose optimizers are set up.
        module: The `OVMultiLabelClassifier`.
        learns: What `learned_summary` gave.
    """
    stage, stages, labels = module.stage, module.stages, module.model.vocabulary_of(None)
    unseen = f", and {len(labels.unseen):,} unseen for evaluation" if labels.unseen else ""
    devices = f"{trainer.world_size} processes on {module.device.type}" if trainer.world_size > 1 else module.device
    devices = f"{devices}{precision_note(trainer)}"
    epochs, steps = max(trainer.max_epochs or 0, 0), trainer.estimated_stepping_batches
    length = [
        f"{number:,} {name}{'s' * (number != 1)}" for name, number in (("epoch", epochs), ("step", steps)) if number
    ]
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    return [
        f"stage {stages.index(stage) + 1} of {len(stages)}: {stage.name}",
        f"  learns {learns}",
        f"  on {_images(trainer.train_dataloader)}, {len(labels.seen):,} labels{unseen}; {devices}",
        f"  for {', '.join(length)}",
        f"  kept in {folder}" if folder and not trainer.fast_dev_run else "  nothing is kept",
    ]


def _images(loader: Any) -> str:
    try:
        return f"{len(loader.dataset):,} images"
    except (AttributeError, TypeError):  # a stream, or a loader of the user's own
        return "images"


@rank_zero_only
def show_run(run: RunFolder, titles: Mapping[str, str], is_kept: bool) -> None:
    """Print the results of a run, where it is, and how to use its model.

    Args:
        run: The run.
        titles: See `show_results`.
        is_kept: False for a `fast_dev_run`.
    """
    if not is_kept:
        show("fast_dev_run: every stage ran; no run is kept")
        return
    show_results(run.results, "validation", titles)
    show(f"run: {run.path}\ntag: ovml tag IMAGE --labels A,B --model {run.path}")


def show_results(rows: Mapping[str, Mapping[str, float]], title: str, titles: Mapping[str, str]) -> None:
    """Print a table of metrics by row.

    Args:
        rows: Metrics by row name.
        title: What was evaluated.
        titles: Titles of the protocols (`OpenVocabularyEvaluation.titles`).
    """
    if any(rows.values()):
        show(results_table(rows, title, titles))
    else:
        notice("no image was evaluated, so there are no results")
