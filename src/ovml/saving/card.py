"""The model card of a saved model: description, usage and metrics."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovml.heads.pool import fitted_part
from ovml.metrics.adapted import Adapted
from ovml.metrics.results import FILES
from ovml.metrics.tables import ROW_TITLES, Rows, markdown_table, metric_order, percent, protocol_titles
from ovml.model import OpenVocabularyModel
from ovml.saving.recipe import PARTS, base_model
from ovml.utils.console import on_one_line
from ovml.utils.errors import UserError
from ovml.utils.resources import RESOURCES
from ovml.utils.version import __version__

TEMPLATE = RESOURCES / "model_card.md"


def read_metrics(source: Rows | str | Path | None) -> tuple[str, Rows]:
    """Read metrics by row, and the name of their split.

    Args:
        source: Rows of metrics (or a single row), a JSON file of them, or a run folder. In a run folder
            `test_results.json` is read, or `results.json` (validation split) if there is none.

    Returns:
        The split (`test`, `validation`, or empty where it is not known) and the rows.

    Raises:
        UserError: The source holds no metrics.

    >>> read_metrics({"zsl/mAP": 0.25})
    ('', {'this model': {'zsl/mAP': 0.25}})
    """
    if source is None:
        return "", {}
    title, split_of = "", {name: split for split, name in FILES.items()}
    if isinstance(source, (str, Path)):
        file = Path(source)
        if file.is_dir():
            file = next((f for name in reversed(split_of) if (f := file / name).is_file()), file)
        title = split_of.get(file.name, "")
        try:
            source = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: no metrics there ({error}); give a run folder with test_results.json (ovml test --ckpt_path)"
            ) from error
    if source and _is_row(source):
        source = {"this model": source}  # type: ignore[dict-item]
    if not isinstance(source, Mapping) or not all(map(_is_row, source.values())):
        raise UserError(f"metrics: expected rows such as {{'vision': {{'zsl/mAP': 0.3}}}}; got {source!r}")
    return title, source


def _is_row(values: Any) -> bool:
    return isinstance(values, Mapping) and all(isinstance(value, (int, float)) for value in values.values())


def metrics_table(rows: Rows) -> str:
    """Format metrics as a Markdown table in percent, with one block of lines per evaluation protocol.

    >>> print(metrics_table({"zero-shot": {"zsl/mAP": 0.25, "zsl/F1@3": 0.5}}))
    | labels | model | mAP | F1@3 |
    |---|---|---:|---:|
    | ZSL | zero-shot CLIP | 25.0 | 50.0 |
    """
    names = [name for values in rows.values() for name in values]
    titles = protocol_titles(names)
    parts = [name.partition("/") for name in names]
    metrics = sorted({metric for protocol, _, metric in parts if protocol in titles and metric}, key=metric_order)
    lines = []
    for protocol, title in titles.items():
        for row, values in rows.items():
            name = ROW_TITLES.get(row, _escaped(row))
            cells = [values.get(f"{protocol}/{metric}") for metric in metrics]
            if any(cell is not None for cell in cells):
                lines.append([_escaped(title), name, *map(percent, cells)])
    return markdown_table(["labels", "model"], [*map(_escaped, metrics)], lines)


def model_card(
    model: OpenVocabularyModel, training: Mapping[str, Any], source: str, metrics: Rows | str | Path | None = None
) -> str:
    """Return the text of a model card: how to load the model, its parts, its metrics.

    Args:
        model: The model.
        training: How it was trained, as descriptions.
        source: Argument for `from_pretrained`: a name on the Hub or a folder.
        metrics: See `read_metrics`.

    Raises:
        UserError: `metrics` leads to no metrics.
    """
    from huggingface_hub import ModelCardData

    base, vocabulary = base_model(model), model.vocabulary
    data = ModelCardData(
        library_name="ovml",
        tags=["open-vocabulary", "multi-label", "clip"],
        base_model=base,
        pipeline_tag="zero-shot-image-classification",
    )
    trained = {part: _class_name(training[part]) for part in ("loss", "distillation") if part in training}
    facts = {
        "CLIP": _escaped(base) if base else "see `config.json`",
        "images": f"{model.image_processor.size} px",
        "labels": "none" if vocabulary is None else f"{len(vocabulary.seen):,} seen, {len(vocabulary.unseen):,} unseen",
        **{part: f"`{type(getattr(model, part)).__qualname__}`" for part in PARTS},
        **{part: f"`{name}`" for part, name in trained.items()},
        "probabilities": "not calibrated" if model.calibration is None else "calibrated",
        **({} if model.adapted is None else _adapted_facts(model.adapted)),
        "stages": _escaped(", ".join(map(_class_name, training.get("stages", ())))) or "none",
    }
    split, rows = read_metrics(metrics)
    evaluation = "No metrics were given."
    if rows:
        of = f" of the {split} split" if split else ""
        evaluation = (
            f"Percent{of}. ZSL scores the unseen labels alone, GZSL seen and unseen labels together, seen "
            f"the seen labels alone.\n\n{metrics_table(rows)}"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    title = _escaped(source.rstrip("/").rpartition("/")[2])
    code, argument = json.dumps(source, ensure_ascii=False), on_one_line(shlex.quote(source))
    scope = "It scores any list of label names, including\nnames that were not seen in training."
    chosen, given = 'labels=["cat", "black cat", "harbour"], ', '--labels "cat,black cat,harbour" '
    if fitted_part(model.head) is not None:
        scope, chosen, given = "It scores the labels\nthat it was fitted for, or some of them.", "", ""
    body = TEMPLATE.read_text(encoding="utf-8").format(
        scope=scope,
        chosen=chosen,
        given=given,
        title=title,
        version=__version__,
        source=code,
        argument=argument,
        facts=table,
        evaluation=evaluation,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _adapted_facts(adapted: Adapted) -> dict[str, str]:
    """What the model was fitted on without labels, and its threshold."""
    facts = {"fitted on": f"{_escaped(adapted.summary())} (results on these images say nothing of others)"}
    if (found := adapted.threshold) is not None:
        facts["threshold"] = f"{found.score:.4g}, for {found.expected:g} labels an image (`--threshold auto`)"
    return facts


def _escaped(text: str) -> str:
    r"""Text as Markdown and HTML show it as it is, on one line.

    >>> print(_escaped("<b>a</b> | *b* [c](d)"))
    &lt;b&gt;a&lt;/b&gt; \| \*b\* \[c\](d)
    """
    return html.escape(re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split())), quote=False)


def _class_name(description: Mapping[str, Any]) -> str:
    return str(description["class_path"]).rpartition(".")[2]
