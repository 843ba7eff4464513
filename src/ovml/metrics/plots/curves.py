"""Figures of an evaluation: precision and recall, scores, the labels with the best and the worst average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovml.metrics.evaluation import OpenVocabularyEvaluation
from ovml.metrics.plots.files import Figure, new_figure
from ovml.metrics.protocols import EvaluationProtocol, shown_protocols
from ovml.metrics.score_counts import ScoreCounts
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

BLUE, ORANGE, GREY, DARK = "#2a6fb0", "#d9822b", "#9a9aa2", "#4b4b55"
GROUPS = {"seen": BLUE, "unseen": ORANGE}
CURVES = {"zsl": ORANGE, "gzsl": DARK, "seen": BLUE}
OTHER_CURVES = ("#3d8f5f", "#8a5fb0", "#b8434e", "#4aa3a8", "#8c6d46")
"""Colours of further protocols, by their place."""
BARS = 20
"""Labels shown of the best, and of the worst."""
LONGEST = 34
"""Characters of a label's name that are shown."""
SHOWN_BINS = 60


@dataclass(frozen=True)
class ProtocolScores:
    """What the figures show of a protocol.

    Attributes:
        title: Title of the protocol.
        names: Names of its labels.
        is_unseen: Whether each label is unseen.
        counts: Counts of its scores, in the groups seen and unseen.
        per_label: Average precision of each label; NaN where no target is present.
    """

    title: str
    names: Sequence[str]
    is_unseen: Sequence[bool]
    counts: ScoreCounts
    per_label: Tensor


def evaluation_figures(
    scores: Tensor,
    targets: Tensor,
    vocabulary: LabelVocabulary,
    zsl_scores: Tensor | None = None,
    title: str = "",
    bins: int = 1000,
    protocols: Sequence[EvaluationProtocol] | None = None,
) -> dict[str, Figure]:
    """Draw the figures of an evaluation from scores.

    Args:
        scores: Of all labels, `[N, L]`.
        targets: `[N, L]`: 1 present, 0 absent, -1 unknown.
        vocabulary: The labels.
        zsl_scores: Of the unseen labels alone, `[N, U]`; MKT's scores depend on the labels that they are scored with.
            Default: those of `scores`.
        title: What was evaluated.
        bins: Of the scores, in curves and histograms.
        protocols: Protocols beside ZSL, GZSL and seen labels.

    Returns:
        Figures by name: `precision_recall`, `scores`, `labels`, and `labels_zsl` and so on for each protocol with
        fewer labels.

    Raises:
        UserError: Shapes do not fit, or matplotlib is not installed.

    Example:
        >>> vocabulary = LabelVocabulary(("cat", "dog"), ("black cat",))
        >>> sorted(evaluation_figures(torch.rand(9, 3), torch.rand(9, 3).round(), vocabulary))
        ['labels', 'labels_zsl', 'precision_recall', 'scores']
    """
    size, unseen = len(scores), vocabulary.unseen_slice
    for name, given, num_labels in (
        ("scores", scores, len(vocabulary)),
        ("targets", targets, len(vocabulary)),
        ("zsl_scores", zsl_scores, len(vocabulary.unseen)),
    ):
        if given is not None and given.shape != (size, num_labels):
            raise UserError(f"{name}: expected [N, {num_labels}] with N = {size}; got {list(given.shape)}")
    evaluation = OpenVocabularyEvaluation(protocols, ks=())
    evaluation.prepare(vocabulary)
    evaluation.update(
        lambda columns: scores[:, columns] if zsl_scores is None or columns != unseen else zsl_scores, targets
    )
    return draw_figures(protocol_scores(evaluation, bins), title)


def protocol_scores(
    evaluation: OpenVocabularyEvaluation, bins: int = 1000, draws: bool = True
) -> dict[str, ProtocolScores]:
    """Count the scores of an evaluation by protocol, before its reset.

    Args:
        evaluation: Updated with all images.
        bins: Of the scores.
        draws: False for a process that only takes part in counting; it returns nothing.
    """
    parts: dict[str, ProtocolScores] = {}
    for name in shown_protocols(evaluation.columns):
        if (vocabulary := evaluation.vocabulary) is not None:
            names = [vocabulary.names[column] for column in evaluation.columns[name]]
            is_unseen = [column >= len(vocabulary.seen) for column in evaluation.columns[name]]
            metric = evaluation.scores_of(name)
            counts = metric.score_counts(bins, torch.tensor(is_unseen).long(), groups=2)
            per_label = metric.per_label()
            parts[name] = ProtocolScores(evaluation.titles[name], names, is_unseen, counts, per_label)
    return parts if draws else {}


def draw_figures(parts: Mapping[str, ProtocolScores], title: str = "") -> dict[str, Figure]:
    """Draw the figures of `evaluation_figures`.

    Args:
        parts: By the protocols' names; `scores` and `labels` are drawn of the one with the most labels.
        title: What was evaluated.
    """
    widest = max(parts, key=lambda name: len(parts[name].names))
    figures = {
        "precision_recall": precision_recall_figure(parts, title),
        "scores": scores_figure(parts[widest].counts, title),
    }
    for name, part in parts.items():
        key, titles = ("labels", [title]) if name == widest else (f"labels_{name}", [part.title, title])
        figures[key] = labels_figure(part.per_label, part.names, part.is_unseen, ", ".join(filter(None, titles)))
    return figures


def precision_recall_figure(parts: Mapping[str, ProtocolScores], title: str = "") -> Figure:
    """Draw precision against recall over all labels together (micro), a curve per protocol.

    A dotted line shows the precision of chance: the share of present targets.
    """
    figure = new_figure(6.4, 5.2)
    axes = figure.add_subplot()
    for (name, part), other in zip(parts.items(), cycle(OTHER_CURVES), strict=False):
        colour = CURVES.get(name, other)
        absent, present = part.counts.counts.sum(axis=(0, 2)).tolist()
        if not present:
            continue
        precision, recall, _ = part.counts.precision_recall()
        chance, reached = present / (present + absent), part.counts.average_precision()
        label = f"{part.title}: AP {100 * reached:.1f} %, chance {100 * chance:.1f} %"
        precision[-1] = precision[-2]  # not 1: nothing scores above the best
        axes.plot(recall, precision, color=colour, label=label, drawstyle="steps-post", linewidth=1.6)
        axes.axhline(chance, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(_titled("Precision and recall, all labels together", title), fontsize=11)
    _tidy(axes, grid="both")
    if axes.lines:
        axes.legend(frameon=False, loc="upper right")
    else:
        axes.text(0.5, 0.5, "no label is present", ha="center", color=GREY)
    return figure


def scores_figure(counts: ScoreCounts, title: str = "") -> Figure:
    """Draw histograms of the scores of present and of absent labels, for seen and for unseen labels.

    Each histogram sums to 1, because absent labels are many more. The outermost thousandth of each is not shown.
    """
    groups = [(name, found) for name, found in zip(GROUPS, counts.counts, strict=True) if found.any()]
    figure = new_figure(7.5, 0.8 + 2.5 * max(1, len(groups)))
    low, high = _range(counts.counts.reshape(-1, counts.counts.shape[-1]))
    step = -(-(high - low) // SHOWN_BINS)
    starts = np.arange(low, high, step)
    edges = counts.edges[np.append(starts, starts[-1] + step).clip(max=counts.counts.shape[-1])]
    panels = figure.subplots(max(1, len(groups)), sharex=True, squeeze=False)[:, 0]
    for axes, (name, (absent, present)) in zip(panels, groups, strict=False):
        for kind, found, colour in (("absent", absent, GREY), ("present", present, GROUPS[name])):
            if total := found.sum():
                share = np.add.reduceat(found[:high], starts) / total
                axes.stairs(share, edges, fill=True, alpha=0.55, color=colour, label=f"{kind} ({total:,} annotations)")
        axes.set(ylabel="share of annotations", title="")
        axes.set_title(f"{name} labels", fontsize=10, loc="left")
        axes.legend(frameon=False)
        _tidy(axes, grid="y")
    panels[-1].set_xlabel("score")
    figure.suptitle(_titled("Scores of present and absent labels", title), fontsize=11)
    return figure


def _range(counts: np.ndarray[Any, Any]) -> tuple[int, int]:
    """First bin, and the one after the last, of what is shown of counts `[rows, bins]`."""
    shares = [row.cumsum() / row.sum() for row in counts if row.any()]
    if not shares:
        return 0, 1
    low = min(int(np.searchsorted(share, 0.001)) for share in shares)
    high = max(int(np.searchsorted(share, 0.999)) for share in shares) + 1
    return low, high


def labels_figure(per_label: Tensor, names: Sequence[str], is_unseen: Sequence[bool], title: str = "") -> Figure:
    """Draw the average precision of the best and of the worst labels as bars.

    Args:
        per_label: Average precision `[L]`; labels with NaN are left out, and their number is given.
        names: Of the labels.
        is_unseen: Of each label, whether it is unseen.
        title: What was evaluated.
    """
    values = per_label.double().cpu().numpy()
    ranked = [int(column) for column in np.argsort(-values, kind="stable") if not np.isnan(values[column])]
    panels = [("", ranked)]
    if len(ranked) > 2 * BARS:
        panels = [(f"best {BARS}", ranked[:BARS]), (f"worst {BARS}", ranked[-BARS:])]
    figure = new_figure(5.5 * len(panels) + 0.5, 1.4 + 0.24 * max(3, *(len(columns) for _, columns in panels)))
    for axes, (panel, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colours = [ORANGE if is_unseen[column] else BLUE for column in columns]
        bars = axes.barh(range(len(columns)), 100 * values[columns], color=colours, height=0.75)
        texts = [f"{value:.1f}" if value >= 1 else f"{value:.1g}" for value in 100 * values[columns]]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
        # Dollar signs would be read as mathematics.
        shown = [shortened(names[column]).replace("$", r"\$") for column in columns]
        axes.set_yticks(range(len(columns)), shown, fontsize=9)
        axes.set(xlim=(0, 108), ylim=(len(columns) - 0.4, -0.6), xlabel="average precision (%)")
        axes.set_title(panel, fontsize=10, loc="left")
        _tidy(axes, grid="x")
    missing = len(values) - len(ranked)
    note = f"; {missing:,} labels without a present annotation are left out" if missing else ""
    figure.suptitle(_titled(f"Average precision of {len(ranked):,} labels{note}", title), fontsize=11)
    if len(set(is_unseen)) == 2:
        from matplotlib.patches import Patch

        keys = [Patch(color=colour, label=name) for name, colour in GROUPS.items()]
        figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False)
    return figure


def shortened(name: str) -> str:
    """A name as it is shown beside a bar: without its middle where it is long, for an id may stand at its end.

    >>> shortened("Personal protective equipment (/m/0123456)")
    'Personal protectiv... (/m/0123456)'
    """
    name = " ".join(name.split())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 16].rstrip()}...{name[-13:]}"


def _tidy(axes: Any, grid: Any) -> None:
    axes.grid(axis=grid, color="#e4e4e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _titled(text: str, title: str) -> str:
    return f"{text} ({title})" if title else text
