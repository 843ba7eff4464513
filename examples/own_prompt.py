"""A prompt learner of your own: trained vectors before the label's name, as in CoOp.

    python examples/own_prompt.py        # trains it briefly on the demo data set

On the command line, in this file's folder: `ovml fit --config demo.yaml --model.prompt own_prompt.PrefixPrompt`.
"""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ovml import OVMultiLabelClassifier
from ovml.data import DemoDataModule
from ovml.encoders import TextEncoder, pad_rows
from ovml.prompts import PromptLearner
from ovml.training import PromptStage


class PrefixPrompt(PromptLearner):
    """`M` trained vectors, then the label's name (CoOp; Zhou et al., IJCV 2022). The text tower stays frozen.

    Args:
        start: Words whose token embeddings initialise the vectors, one per token.
    """

    def __init__(self, start: str = "there is a") -> None:
        super().__init__()
        self.start = start

    def bind(self, text_encoder: TextEncoder) -> PromptLearner:
        """Create the vectors `[M, W]`; their width is that of the tower."""
        super().bind(text_encoder)
        (ids,), _ = text_encoder.tokenize([self.start])
        table = text_encoder.token_embedding.weight.detach()
        self.context = nn.Parameter(table[ids[1:-1]].clone())  # without the start and end token
        return self

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Embed names; returns `[L, D]`."""
        ids, _ = self.text_encoder.tokenize([f"{self.start} {name}" for name in names])
        tokens = self.text_encoder.token_embedding(pad_rows(ids).to(self.context.device))  # [L, T, W]
        lengths = torch.tensor([len(row) for row in ids], device=tokens.device)
        first, context = tokens[:, :1], self.context.expand(len(names), -1, -1)
        rest = tokens[:, 1 + len(self.context) :]
        # All texts start with the same tokens, so the tower runs over these once.
        shared = 1 + len(self.context)
        return self.text_encoder.encode(torch.cat([first, context, rest], dim=1), lengths, num_shared=shared)


def main() -> None:
    data = DemoDataModule(train_size=256, eval_size=100)
    prompt, stage = PrefixPrompt(), PromptStage(epochs=1)
    model = OVMultiLabelClassifier("ovml-demo", labels=data.vocabulary, prompt=prompt, stages=[stage])
    initial = prompt.context.detach().clone()
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    trainer.fit(model, datamodule=data)
    moved = (prompt.context.detach().cpu() - initial).norm(dim=1) / initial.norm(dim=1)
    print(f"relative change of each vector: {[round(share, 4) for share in moved.tolist()]}")
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "mAP" in name})


if __name__ == "__main__":
    main()
