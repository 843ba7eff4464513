"""Stateless forms of the metrics."""

from ovml.metrics.functional.average_precision import average_precision
from ovml.metrics.functional.f1_at_k import count_at_k, precision_recall_f1

__all__ = ["average_precision", "count_at_k", "precision_recall_f1"]
