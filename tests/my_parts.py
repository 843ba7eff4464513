"""Parts that a researcher might write, named on the command line or in a saved model."""

import torch
from PIL import Image

from ovml import LabelVocabulary
from ovml.cli.command import Command
from ovml.data import MultiLabelDataModule
from ovml.encoders.adapters import TowerAdapter
from ovml.heads import Head
from ovml.losses import Loss
from ovml.metrics import EvaluationProtocol
from ovml.prompts import PromptLearner
from ovml.training import Stage
from ovml.utils.console import show


class MaxPatchHead(Head):
    """A head with a parameter of its own."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, features, label_embeds):
        return self.factor * (features.patch_embeds @ label_embeds.T).amax(dim=1)


class Shift(TowerAdapter):
    """A parameter of its own in the tower's last block, added to what the block gives."""

    num_layers = 1
    added = frozenset({"shift"})

    def attach(self, encoder, embed_dim):
        block = encoder.tail(1).layers[0]
        like = next(block.parameters())
        block.shift = torch.nn.Parameter(torch.zeros(encoder.vision_model.config.hidden_size).to(like))
        block.register_forward_hook(lambda module, _, output: output + module.shift)

    def parameters(self, encoder):
        return [encoder.tail(1).layers[0].shift]


class ShiftStage(Stage):
    """A stage that learns a shift."""

    name = "shift"
    adapter = Shift()

    def parameter_groups(self, parts):
        return [{"params": self.adapter.parameters(parts.image_encoder), "name": "shift"}]


class CountLoss(Loss):
    """The mean logit of absent labels."""

    def forward(self, logits, targets):
        return (logits * (targets == 0)).mean()


class SuffixPrompt(PromptLearner):
    """A learned vector added to every label embedding."""

    def bind(self, text_encoder):
        super().bind(text_encoder)
        self.shift = torch.nn.Parameter(torch.zeros(text_encoder.embed_dim))
        return self

    def embed(self, names):
        return self.text_encoder([f"a {name}" for name in names]) + self.shift


class LastLabels(EvaluationProtocol):
    """The last three labels of the vocabulary."""

    name = "last_labels"

    def columns(self, vocabulary):
        return range(len(vocabulary) - 3, len(vocabulary))


class Greys(MultiLabelDataModule):
    """Grey images; dark ones show label 0, bright ones the unseen label."""

    vocabulary = LabelVocabulary(("dark", "dull", "grey"), ("bright",))

    def dataset(self, split):
        shades = [(10, "dark"), (90, "dull"), (120, "grey"), (250, "bright")] * 2
        return [{"image": Image.new("RGB", (50, 50), (shade,) * 3), "positive": [name]} for shade, name in shades]


class Count(Command):
    """Prints how many labels are given."""

    def add_arguments(self, parser):
        parser.add_argument("--label-names")

    def run(self, args):
        show(f"{len(args.label_names.split(','))} labels")
