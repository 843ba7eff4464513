"""The evaluation protocols: zero-shot, generalized zero-shot, seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn
from torchmetrics import MetricCollection

from ovml.metrics.average_precision import MultilabelMeanAveragePrecision
from ovml.metrics.f1_at_k import PrecisionRecallF1AtK

PROTOCOLS = ("zsl", "gzsl", "seen")


class OpenVocabularyEvaluation(nn.Module):
    """Mean average precision and P, R, F1 at k for each protocol.

    `zsl` scores the unseen labels alone, `gzsl` seen and unseen together, `seen` the seen alone. The scores are the
    caller's: a head that normalises over labels must be run once for every protocol.

    Args:
        ks: The k of precision, recall and F1; or those of each protocol, by name.
        images: Which images count: `all` (as MKT and BiAM do on NUS-WIDE), or those `labelled`, with at least one
            present label among those scored (as BiAM on Open Images, QKS, DualCoOp and RAM do).
        protocols: Names of the protocols.
        empty_labels: See `MultilabelMeanAveragePrecision`.

    Example:
        >>> import torch
        >>> evaluation = OpenVocabularyEvaluation(ks=(1,))
        >>> evaluation.update("zsl", torch.tensor([[0.9, 0.1]]), torch.tensor([[1, 0]]))
        >>> sorted(evaluation.compute())
        ['zsl/F1@1', 'zsl/P@1', 'zsl/R@1', 'zsl/mAP']
    """

    def __init__(
        self,
        ks: Sequence[int] | Mapping[str, Sequence[int]] = (3, 5),
        images: Literal["all", "labelled"] = "all",
        protocols: Sequence[str] = PROTOCOLS,
        empty_labels: Literal["skip", "zero"] = "skip",
    ) -> None:
        super().__init__()
        if images not in ("all", "labelled"):
            raise ValueError(f"images must be 'all' or 'labelled'; got {images!r}")
        self.images = images
        of_protocol = ks if isinstance(ks, Mapping) else dict.fromkeys(protocols, ks)
        self.protocols = nn.ModuleDict(
            {
                name: MetricCollection(
                    {
                        "mAP": MultilabelMeanAveragePrecision(empty_labels),
                        **({"at_k": PrecisionRecallF1AtK(of_protocol[name])} if of_protocol[name] else {}),
                    },
                    compute_groups=False,
                )
                for name in protocols
            }
        )

    def update(self, protocol: str, logits: Tensor, targets: Tensor) -> None:
        """Add a batch to a protocol.

        Args:
            protocol: One of the protocols' names.
            logits: `[B, L']`, scored over this protocol's labels.
            targets: `[B, L']`.

        Raises:
            ValueError: There is no such protocol, shapes do not fit, or a k exceeds the number of labels.
        """
        if protocol not in self.protocols:
            raise ValueError(f"protocol must be one of {list(self.protocols)}; got {protocol!r}")
        if self.images == "labelled":
            labelled = (targets == 1).any(dim=1)
            logits, targets = logits[labelled], targets[labelled]
        self.protocols[protocol].update(logits, targets)  # type: ignore[operator]

    def compute(self) -> dict[str, Tensor]:
        """Return `protocol/metric` for every protocol that was updated."""
        results: dict[str, Tensor] = {}
        for name, metrics in self.protocols.items():
            if metrics["mAP"].update_called:  # type: ignore[index]
                results |= {f"{name}/{metric}": value for metric, value in metrics.compute().items()}  # type: ignore[operator]
        return results

    def reset(self) -> None:
        """Forget all batches."""
        for metrics in self.protocols.values():
            metrics.reset()  # type: ignore[operator]
