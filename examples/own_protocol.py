"""An evaluation protocol of your own: the labels of one shape.

    python examples/own_protocol.py        # evaluates zero-shot CLIP on the demo data set

On the command line, add this file's folder to the path: `PYTHONPATH=examples ovml test --config demo.yaml
--model.protocols+ own_protocol.LabelsWith --model.protocols.word star`.
"""

from collections.abc import Sequence

import lightning.pytorch as pl

from ovml import LabelVocabulary, OVMultiLabelClassifier
from ovml.data import DemoDataModule
from ovml.metrics import EvaluationProtocol


class LabelsWith(EvaluationProtocol):
    """Seen and unseen labels that have a word in their name.

    Args:
        word: The word.
    """

    def __init__(self, word: str = "star") -> None:
        self.word = word
        self.name = f"with_{word}"  # the metrics are with_star/mAP and so on
        self.title = f"with {word!r}"

    def columns(self, vocabulary: LabelVocabulary) -> Sequence[int]:
        """Their places in the vocabulary."""
        return [i for i, name in enumerate(vocabulary.names) if self.word in name.split()]


def main() -> None:
    data = DemoDataModule(train_size=8, eval_size=200)
    protocol = LabelsWith("star")
    print("labels:", [data.vocabulary.names[i] for i in protocol.columns(data.vocabulary)][:4], "...")
    model = OVMultiLabelClassifier("ovml-demo", labels=data.vocabulary, protocols=[protocol])
    trainer = pl.Trainer(logger=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(model.zero_shot(), datamodule=data, verbose=False)
    print({name: round(value, 3) for name, value in metrics.items() if "mAP" in name})


if __name__ == "__main__":
    main()
