"""Parts that a researcher might write, named on the command line or in a saved model."""

from ovml.heads import Head
from ovml.training import Stage


class MaxPatchHead(Head):
    """A head with a parameter of its own."""

    def __init__(self, factor: float = 1.0) -> None:
        import torch

        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, features, label_embeds):
        return self.factor * (features.patch_embeds @ label_embeds.T).amax(dim=1)


class ShiftStage(Stage):
    """A stage that puts a parameter of its own into the tower's last block, added to what the block gives."""

    name = "shift"
    added = frozenset({"shift"})

    def prepare(self, model):
        import torch

        block = model.image_encoder.tail(1).layers[0]
        like = next(block.parameters())
        block.shift = torch.nn.Parameter(torch.zeros(model.image_encoder.vision_model.config.hidden_size).to(like))
        block.register_forward_hook(lambda module, _, output: output + module.shift)

    def parameter_groups(self, model):
        return [{"params": [model.image_encoder.tail(1).layers[0].shift], "name": "shift"}]
