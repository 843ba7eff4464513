"""A head of your own: the best patch of each label, with a trained weight.

    python examples/own_head.py        # trains it briefly on the demo data set

On the command line, in this file's folder: `ovml fit --config demo.yaml --model.head own_head.MaxPatchHead`.
"""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ovml import OVMultiLabelClassifier
from ovml.data import DemoDataModule
from ovml.encoders import ImageFeatures
from ovml.heads.base import Head, normalize_over_labels
from ovml.training import VisionStage


class MaxPatchHead(Head):
    """Global embedding plus best patch: `s = g + w · max_p` with a trained weight `w`.

    Args:
        weight: Initial weight.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Score `[B, D]` and `[B, P, D]` against `[L, D]`; returns `[B, L]`."""
        best = (features.patch_embeds @ label_embeds.T).amax(dim=1)
        scores = features.global_embeds @ label_embeds.T + self.weight * best
        return normalize_over_labels(scores)


def main() -> None:
    data = DemoDataModule(train_size=256, eval_size=100)
    stage = VisionStage(epochs=1, warmup_epochs=0.5)
    model = OVMultiLabelClassifier("ovml-demo", labels=data.vocabulary, head=MaxPatchHead(), stages=[stage])
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "mAP" in name})


if __name__ == "__main__":
    main()
