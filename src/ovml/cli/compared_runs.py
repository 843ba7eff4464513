"""The runs that `ovml compare` compares: their settings, their results, and which of them may be compared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovml.cli.settings import MACHINE_ONLY, check_config
from ovml.metrics.results import FILES, is_run, read_results
from ovml.utils.errors import UserError

SEEDS = {"seed_everything", "data.seed"}
"""Runs that differ in these alone are seeds of one setting."""
TRAINING_ONLY = (
    *("data.augment", "data.augmentation", "data.batch_size", "data.clip", "data.crop_scale", "data.cutout"),
    *("data.drop_last", "data.flip", "data.rand_augment", "data.reshuffle", "data.seed", "data.shots"),
    *("data.shuffle_buffer", "data.skip_broken", "data.streamed_rows", "data.train_size"),
)
"""Settings of data modules, and those below them, that do not change which images and labels are evaluated."""
EVALUATED = {
    "validation": {"model.images", "trainer.limit_val_batches", "trainer.overfit_batches"},
    "test": {"model.images", "trainer.limit_test_batches"},
}
"""Other settings that do."""
ZERO_SHOT = ("model.clip", "model.prompt.template", "model.preprocessing", "trainer.precision")
"""Settings, and those below them, that the results of zero-shot CLIP depend on, beside the images and labels."""
SAME = 1e-3
"""Largest difference between results of zero-shot CLIP on the same images, on different machines."""
Results = dict[str, dict[str, float]]
"""Metrics by row."""


@dataclass(frozen=True)
class Run:
    """A run of `ovml fit`.

    Attributes:
        name: A short name.
        path: Its folder, or the JSON file of its results.
        settings: Values by setting, such as `model.loss.temperature`; `None` for a run made in Python.
        results: Metrics by split and row.
    """

    name: str
    path: Path
    settings: dict[str, Any] | None
    results: dict[str, Results]

    @property
    def stages(self) -> int:
        """Number of stages that the run has when it is finished; 0 if that is not known."""
        stages = (self.settings or {"model.stages": []}).get("model.stages")
        return len(stages) if isinstance(stages, list) else 2

    def is_seed_of(self, other: Run) -> bool:
        """Whether nothing but the seed differs."""
        if self.settings is None or other.settings is None:
            return self is other
        return not set(differing([self, other])) - SEEDS


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read runs.

    Args:
        paths: Run folders, or JSON files of results.

    Raises:
        UserError: There is no such run, it is damaged, or one is given twice.
    """
    places = [Path(os.path.abspath(path)) for path in paths]
    for position, place in enumerate(places):
        if place in places[:position]:
            raise UserError(f"{paths[position]}: given twice; give another run")
    names = _short_names(places)
    return [_read(name, Path(path)) for name, path in zip(names, paths, strict=True)]


def _read(name: str, path: Path) -> Run:
    if path.is_file() and path.suffix == ".json":
        split = "test" if "test" in path.name else "validation"
        return Run(name, path, _settings(path.parent), {split: read_results(path, "give another file")})
    if not is_run(path):
        inside = next((found for found in sorted(path.glob("*/")) if is_run(found)), None)
        advice = (
            "give the folder of a run of ovml fit" if inside is None else f"it holds runs: give {inside} and others"
        )
        raise UserError(f"{path}: not a run; {advice}")
    again = {"validation": "delete it, and 'ovml fit --ckpt_path' evaluates again", "test": "run ovml test again"}
    results = {split: read_results(path / file, again[split]) for split, file in FILES.items()}
    return Run(name, path, _settings(path), results)


def _settings(folder: Path) -> dict[str, Any] | None:
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    found = {name: value for name, value in _flat(check_config(file, ""), "") if name not in MACHINE_ONLY}
    if found.get("data.clip") == found.get("model.clip"):
        found.pop("data.clip", None)
    return found


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Settings by name, as the command line has them; in a list of classes those of each below its own name."""
    classes = value if isinstance(value, list) else [value]
    if classes and all(isinstance(item, Mapping) and "class_path" in item for item in classes):
        names = [_class_name(item) for item in classes]
        yield name, names if isinstance(value, list) else names[0]
        for position, (own, item) in enumerate(zip(names, classes, strict=True)):
            own = own if names.count(own) == 1 else f"{own} {position + 1}"
            if arguments := item.get("init_args"):
                yield from _flat(arguments, f"{name}.{own}" if isinstance(value, list) else name)
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}".removeprefix("."))
    else:
        yield name, value


def _class_name(description: Mapping[str, Any]) -> str:
    """The name on the command line: of classes of ovml and Lightning the last part, which is enough."""
    path = str(description["class_path"])
    return path.rpartition(".")[2] if path.startswith(("ovml.", "lightning.")) else path


def _short_names(places: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that differ between runs whose settings are known."""
    known = [run.settings for run in runs if run.settings is not None]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [name for name in names if len({json.dumps(settings.get(name)) for settings in known}) > 1]


def shown_settings(runs: Sequence[Run]) -> list[str]:
    """Those of the settings that differ which more than one value is known of: not the arguments of one class alone."""
    known = [run.settings for run in runs if run.settings is not None]
    values = {name: {json.dumps(own[name]) for own in known if name in own} for name in differing(runs)}
    return [name for name, different in values.items() if len(different) > 1]


def group_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ in the seed alone, in the order of their first runs."""
    groups: list[list[Run]] = []
    for run in runs:
        own = next((group for group in groups if run.is_seed_of(group[0])), None)
        if own is None:
            groups.append(own := [])
        own.append(run)
    return groups


def other_images(run: Run, first: Run, split: str) -> str | None:
    """Why a split of two runs may not be compared; `None` if both evaluated the same images and labels.

    Zero-shot CLIP is the same model in all runs of one checkpoint, so its results tell; else the settings do.
    """
    changed = differing([run, first])
    names = [
        name
        for name in changed
        if name in EVALUATED[split] or (name.partition(".")[0] == "data" and not _is_below(name, TRAINING_ONLY))
    ]
    names = ["data"] if "data" in names else names
    reason = ", ".join(f"--{name}" for name in names) or None
    same_clip = not any(_is_below(name, ZERO_SHOT) for name in changed)
    mine, theirs = (each.results.get(split, {}).get("zero-shot", {}) for each in (run, first))
    both = [(mine[name], theirs[name]) for name in mine.keys() & theirs.keys()]
    if not (same_clip and both):
        return reason
    if all(abs(one - other) <= SAME or (math.isnan(one) and math.isnan(other)) for one, other in both):
        return None
    return reason or "zero-shot CLIP scores differently"


def _is_below(name: str, settings: Sequence[str]) -> bool:
    """Whether a setting is one of these, or an argument of one of them."""
    return any(name == own or name.startswith(f"{own}.") for own in settings)
