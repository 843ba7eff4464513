"""Pictures: why a label was ranked where it was, and what an evaluation found.

`explain` needs Pillow alone; the pictures of an evaluation need matplotlib (`pip install 'ovml[plots]'`).
"""

from ovml.plots.callback import EvaluationPlots
from ovml.plots.curves import evaluation_figures
from ovml.plots.explain import explain

__all__ = ["EvaluationPlots", "evaluation_figures", "explain"]
