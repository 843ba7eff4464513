"""A stage of your own: only the biases and norms of the last blocks learn, as in BitFit.

    python examples/own_stage.py        # trains it briefly on the demo data set

On the command line, add this file's folder to the path:
`PYTHONPATH=examples ovml fit --config demo.yaml --model.stages '[own_stage.BiasStage, PromptStage]'`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import lightning.pytorch as pl

from ovml import OVMultiLabelClassifier, Stage
from ovml.data import DemoDataModule
from ovml.training.stages import LearningParts


@dataclass(repr=False)
class BiasStage(Stage):
    """Biases and norms of the last blocks learn (BitFit; Ben Zaken et al., ACL 2022), with distillation.

    Args:
        num_layers: Number of last blocks.
    """

    name: ClassVar[str] = "bias"
    distil: ClassVar[bool] = True

    num_layers: int = 2

    def parameter_groups(self, parts: LearningParts) -> list[dict[str, Any]]:
        """The tower's vectors, then the head's, the loss's and the distillation's own parameters."""
        blocks = parts.image_encoder.tail(self.num_layers).layers
        vectors = [parameter for parameter in blocks.parameters() if parameter.ndim == 1]
        return self.own_groups(vectors, "bias") + self.own_groups(parts.own_parameters(), "parts")


def main() -> None:
    data = DemoDataModule(train_size=256, eval_size=100)
    stage = BiasStage(epochs=1, warmup_epochs=0, lr=1e-2, num_layers=4)
    model = OVMultiLabelClassifier("ovml-demo", labels=data.vocabulary, stages=[stage])
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{learning:,} parameters learn")
    trainer = pl.Trainer(max_epochs=stage.epochs, logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "mAP" in name})


if __name__ == "__main__":
    main()
