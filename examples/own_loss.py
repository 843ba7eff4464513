"""A loss of your own: binary cross-entropy that ignores unknown labels, with trained scale and bias.

    python examples/own_loss.py        # trains it briefly on the demo data set

On the command line, in this file's folder: `ovml fit --config demo.yaml --model.loss own_loss.KnownBinaryCrossEntropy`.
"""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovml import OVMultiLabelClassifier
from ovml.data import DemoDataModule
from ovml.losses import Loss
from ovml.training import VisionStage


class KnownBinaryCrossEntropy(Loss):
    """Cross-entropy of `sigmoid(scale · s + bias)`, averaged over the known labels of an image, then over images.

    MKT's scores are small, because they are divided by their norm over the labels. Scale and bias move them into the
    range where a sigmoid separates present from absent labels.

    Args:
        scale: Initial scale.
        bias: Initial bias; negative, because most labels are absent.
    """

    def __init__(self, scale: float = 20.0, bias: float = -4.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compare scores `[B, L]` with targets `[B, L]`: 1 present, 0 absent, -1 unknown; returns a scalar."""
        known = targets != -1
        present = (targets == 1).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(self.scale * logits + self.bias, present, reduction="none")
        return ((losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)).mean()


def main() -> None:
    data = DemoDataModule(train_size=256, eval_size=100)
    loss, stage = KnownBinaryCrossEntropy(), VisionStage(epochs=1, warmup_epochs=0.5)
    model = OVMultiLabelClassifier("ovml-demo", labels=data.vocabulary, loss=loss, stages=[stage])
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    print(f"learned: scale {loss.scale.item():.2f}, bias {loss.bias.item():.2f}")
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "mAP" in name})


if __name__ == "__main__":
    main()
