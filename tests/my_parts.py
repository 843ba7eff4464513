"""Parts that a researcher might write, named on the command line."""

from ovml.heads import Head


class MaxPatchHead(Head):
    """A head with a parameter of its own."""

    def __init__(self, factor: float = 1.0) -> None:
        import torch

        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, features, label_embeds):
        return self.factor * (features.patch_embeds @ label_embeds.T).amax(dim=1)
