"""Pictures of an evaluation as matplotlib figures: precision and recall, scores, the best and the worst labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ovml.metrics import ScoreCounts
from ovml.metrics.functional.average_precision import average_precision
from ovml.metrics.plots.files import new_figure
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2a6fb0", "#d9822b", "#9a9aa2"
COLOURS = {"ZSL": ORANGE, "GZSL": "#4b4b55", "seen": BLUE, "unseen": ORANGE}
TITLES = {"zsl": "ZSL", "gzsl": "GZSL", "seen": "seen"}
BARS = 20
"""Labels shown of the best, and of the worst."""
LONGEST = 34
"""Characters of a label's name that are shown."""
SHOWN_BINS = 60


def evaluation_figures(
    scores: Tensor,
    targets: Tensor,
    vocabulary: LabelVocabulary,
    zsl_scores: Tensor | None = None,
    title: str = "",
    bins: int = 1000,
) -> dict[str, Figure]:
    """Draw the pictures of an evaluation.

    Args:
        scores: Of all labels, `[N, L]`.
        targets: `[N, L]`: 1 present, 0 absent, -1 unknown.
        vocabulary: The labels.
        zsl_scores: Of the unseen labels alone, `[N, U]`; MKT's scores depend on the labels that they are scored with.
            Default: those of `scores`.
        title: What was evaluated.
        bins: Of the scores, in curves and histograms.

    Returns:
        Figures by name: `precision_recall`, `scores`, `labels`, and `labels_zsl` where there are unseen labels.

    Raises:
        UserError: Shapes do not fit, or matplotlib is not installed.

    Example:
        >>> vocabulary = LabelVocabulary(("cat", "dog"), ("black cat",))
        >>> sorted(evaluation_figures(torch.rand(9, 3), torch.rand(9, 3).round(), vocabulary))
        ['labels', 'labels_zsl', 'precision_recall', 'scores']
    """
    shape = (len(scores), len(vocabulary))
    if scores.shape != shape or targets.shape != shape:
        raise UserError(
            f"scores and targets: expected [N, {len(vocabulary)}], a column per label; "
            f"got {list(scores.shape)} and {list(targets.shape)}"
        )
    targets = targets.to(torch.int8)
    parts = {"gzsl" if vocabulary.unseen else "seen": (scores, targets)}
    if vocabulary.unseen:
        unseen = vocabulary.unseen_slice
        parts["zsl"] = (scores[:, unseen] if zsl_scores is None else zsl_scores, targets[:, unseen])
        if parts["zsl"][0].shape != parts["zsl"][1].shape:
            raise UserError(
                f"zsl_scores: expected {list(parts['zsl'][1].shape)}, a column per unseen label; "
                f"got {list(parts['zsl'][0].shape)}"
            )
    counts, per_label = {}, {}
    for protocol, (of_protocol, marks) in parts.items():
        groups = label_groups(vocabulary, protocol)
        counts[protocol] = ScoreCounts(bins, groups=2)
        counts[protocol].update(of_protocol, marks, groups)
        per_label[protocol] = average_precision(of_protocol, marks)
    return draw_figures(counts, per_label, vocabulary, title)


def label_groups(vocabulary: LabelVocabulary, protocol: str) -> Tensor:
    """Of each label that a protocol scores, whether it is unseen, `[L']`: the groups of `ScoreCounts`."""
    groups = torch.zeros(len(vocabulary), dtype=torch.long)
    groups[vocabulary.unseen_slice] = 1
    return groups[protocol_columns(vocabulary)[protocol]]


def protocol_columns(vocabulary: LabelVocabulary) -> dict[str, slice]:
    """Columns of the vocabulary that each protocol scores."""
    return {"zsl": vocabulary.unseen_slice, "gzsl": slice(None), "seen": vocabulary.seen_slice}


def draw_figures(
    counts: Mapping[str, ScoreCounts], per_label: Mapping[str, Tensor], vocabulary: LabelVocabulary, title: str = ""
) -> dict[str, Figure]:
    """Draw the figures of `evaluation_figures` from what was counted.

    Args:
        counts: By protocol, in groups seen and unseen.
        per_label: Average precision of each label, by protocol; NaN where a label has no present mark.
        vocabulary: The labels.
        title: What was evaluated.
    """
    whole = "gzsl" if "gzsl" in counts else "seen"
    figures = {
        "precision_recall": precision_recall_figure({TITLES[name]: found for name, found in counts.items()}, title),
        "scores": scores_figure(counts[whole], title),
        "labels": labels_figure(per_label[whole], vocabulary.names, len(vocabulary.seen), title),
    }
    if "zsl" in per_label:
        figures["labels_zsl"] = labels_figure(per_label["zsl"], vocabulary.unseen, 0, title, "unseen labels")
    return figures


def precision_recall_figure(counts: Mapping[str, ScoreCounts], title: str = "") -> Figure:
    """Draw precision against recall over all labels together (micro), a curve per protocol.

    A dotted line shows what chance would reach: the share of present marks.
    """
    figure = new_figure(6.4, 5.2)
    axes = figure.add_subplot()
    for name, found in counts.items():
        absent, present = found.counts.sum(axis=(0, 2)).tolist()
        if not present:
            continue
        precision, recall, _ = found.precision_recall()
        text = f"{name}: AP {100 * found.average_precision():.1f} %, chance {100 * present / (present + absent):.1f} %"
        precision[-1] = precision[-2]  # not 1: nothing scores above the best
        axes.plot(recall, precision, color=COLOURS[name], label=text, drawstyle="steps-post", linewidth=1.6)
        axes.axhline(present / (present + absent), color=COLOURS[name], linestyle=":", linewidth=1)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(_titled("Precision and recall, all marks together", title), fontsize=11)
    _tidy(axes, grid="both")
    if axes.lines:
        axes.legend(frameon=False, loc="upper right")
    else:
        axes.text(0.5, 0.5, "no mark is present", ha="center", color=GREY)
    return figure


def scores_figure(counts: ScoreCounts, title: str = "") -> Figure:
    """Draw how the scores of present and of absent marks are spread, for seen and for unseen labels.

    Each histogram sums to 1: absent marks are many more. The outermost thousandth of each is not shown.
    """
    groups = [(name, counts.counts[i]) for i, name in enumerate(("seen", "unseen")) if counts.counts[i].any()]
    figure = new_figure(7.5, 0.8 + 2.5 * max(1, len(groups)))
    low, high = _range(counts.counts.reshape(-1, counts.counts.shape[-1]))
    step = -(-(high - low) // SHOWN_BINS)
    starts = np.arange(low, high, step)
    edges = counts.edges[np.append(starts, starts[-1] + step).clip(max=counts.counts.shape[-1])]
    panels = figure.subplots(max(1, len(groups)), sharex=True, squeeze=False)[:, 0]
    for axes, (name, (absent, present)) in zip(panels, groups, strict=False):
        for mark, found, colour in (("absent", absent, GREY), ("present", present, COLOURS[name])):
            if total := found.sum():
                share = np.add.reduceat(found[:high], starts) / total
                axes.stairs(share, edges, fill=True, alpha=0.55, color=colour, label=f"{mark} ({total:,} marks)")
        axes.set(ylabel="share of marks", title="")
        axes.set_title(f"{name} labels", fontsize=10, loc="left")
        axes.legend(frameon=False)
        _tidy(axes, grid="y")
    panels[-1].set_xlabel("score")
    figure.suptitle(_titled("Scores of present and absent marks", title), fontsize=11)
    return figure


def _range(counts: np.ndarray[Any, Any]) -> tuple[int, int]:
    """First bin, and the one after the last, of what is shown of counts `[rows, bins]`."""
    shares = [row.cumsum() / row.sum() for row in counts if row.any()]
    if not shares:
        return 0, 1
    low = min(int(np.searchsorted(share, 0.001)) for share in shares)
    high = max(int(np.searchsorted(share, 0.999)) for share in shares) + 1
    return low, high


def labels_figure(
    per_label: Tensor, names: Sequence[str], num_seen: int, title: str = "", kind: str = "labels"
) -> Figure:
    """Draw the average precision of the best and of the worst labels as bars.

    Args:
        per_label: Average precision `[L]`; labels with NaN are left out, and their number is given.
        names: Of the labels.
        num_seen: Labels that are seen; they are the first.
        title: What was evaluated.
        kind: What to call the labels.
    """
    values = per_label.double().cpu().numpy()
    ranked = [int(column) for column in np.argsort(-values, kind="stable") if not np.isnan(values[column])]
    panels = [("", ranked)]
    if len(ranked) > 2 * BARS:
        panels = [(f"best {BARS}", ranked[:BARS]), (f"worst {BARS}", ranked[-BARS:])]
    figure = new_figure(5.5 * len(panels) + 0.5, 1.4 + 0.24 * max(3, *(len(columns) for _, columns in panels)))
    for axes, (panel, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colours = [BLUE if column < num_seen else ORANGE for column in columns]
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
    note = f"; {missing:,} labels without a present mark are left out" if missing else ""
    figure.suptitle(_titled(f"Average precision of {len(ranked):,} {kind}{note}", title), fontsize=11)
    if 0 < num_seen < len(names):
        _key(figure)
    return figure


def shortened(name: str) -> str:
    """A name as it is shown beside a bar: without its middle where it is long, for an id may stand at its end.

    >>> shortened("Personal protective equipment (/m/0123456)")
    'Personal protectiv... (/m/0123456)'
    """
    name = " ".join(name.split())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 16].rstrip()}...{name[-13:]}"


def _key(figure: Figure) -> None:
    from matplotlib.patches import Patch

    keys = [Patch(color=BLUE, label="seen"), Patch(color=ORANGE, label="unseen")]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False)


def _tidy(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color="#e4e4e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _titled(picture: str, title: str) -> str:
    return f"{picture} ({title})" if title else picture
