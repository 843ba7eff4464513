"""Stages that adapt the vision tower and leave its weights as they are: LoRA and visual prompts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ovml.training.stages import VisionStage, decay_groups
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from ovml.classifier import OVMultiLabelClassifier

PROMPTS = "visual_prompts"
"""A prompted block's parameter."""


class LoRAStage(VisionStage):
    """A vision stage in which low-rank adapters learn in the place of the blocks (Hu et al., ICLR 2022, 2106.09685).

    In the last blocks a linear map `W x + b` becomes `W x + b + alpha / rank * B A x`, with `A [rank, in]` and
    `B [out, rank]` (sec. 4.1). `B` begins as zero, so that the untrained model gives what the original gives, bit
    for bit. The adapters learn, and the head's, the loss's and the distillation's own parameters; norm, projection and
    `W` do not. A checkpoint holds what learned; `save_pretrained` adds `alpha / rank * B A` to `W` and writes plain
    weights, in which a model that is loaded again starts with new adapters. The adapters are `peft`'s.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`; it draws towards the original weights.
        num_layers: Number of last blocks that are adapted.
        rank: Rank of an adapter.
        alpha: Its scale, divided by the rank.
        dropout: Share of an adapter's inputs that are dropped in training.
        targets: Names of the linear maps that are adapted, of `q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1` and
            `fc2`. Default: `q_proj` and `v_proj`, as in the paper.

    Raises:
        UserError: An argument is out of its range; or, when the model is made, `peft` is missing, a block has no such
            maps, the tower is too short, or another stage changes it.

    Example:
        >>> from ovml import OVMultiLabelClassifier
        >>> model = OVMultiLabelClassifier("ovml-demo", ["red circle"], stages=[LoRAStage(num_layers=1, rank=2)])
        >>> sorted(name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad)
        ['lora_A', 'lora_A', 'lora_B', 'lora_B']
    """

    name = "lora"

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 2,
        weight_decay: float = 0.05,
        num_layers: int = 2,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
    ) -> None:
        super().__init__(epochs, lr, min_lr, warmup_epochs, weight_decay, 1.0, num_layers)
        if num_layers < 1 or rank < 1 or alpha <= 0 or not 0 <= dropout < 1 or targets == []:
            raise UserError(
                f"stage 'lora': num_layers and rank must be at least 1, alpha above 0, dropout from 0 to below 1, and "
                f"targets not empty; got num_layers={num_layers}, rank={rank}, alpha={alpha}, dropout={dropout}, "
                f"targets={targets}"
            )
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets

    def prepare(self, model: OVMultiLabelClassifier) -> None:
        """Put adapters into the last blocks."""
        check_alone(self, model)
        try:
            import peft
        except ImportError as error:
            raise UserError(
                "stage 'lora': needs peft; pip install 'ovml[peft]', or stages=[] to only use a saved model"
            ) from error
        targets = self.targets or ["q_proj", "v_proj"]
        layers = model.image_encoder.tail(self.num_layers).layers
        linear = {n.rpartition(".")[2] for n, m in layers[0].named_modules() if isinstance(m, nn.Linear)}
        if unknown := sorted(set(targets) - linear):
            raise UserError(f"stage 'lora': targets: no {unknown[0]!r}; a block has {', '.join(sorted(linear))}")
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=cast(Any, self.alpha), lora_dropout=self.dropout, target_modules=targets
        )
        for layer in layers:
            peft.inject_adapter_in_model(config, layer)

    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """The adapters, then the other parts' own parameters."""
        layers = model.image_encoder.tail(self.num_layers).layers
        adapters = [p for name, p in layers.named_parameters() if ".lora_" in name]
        return decay_groups(adapters, "lora", self.lr, self.weight_decay) + self.part_groups(model)


class VisualPromptStage(VisionStage):
    r"""A vision stage in which tokens learn that blocks read beside the picture's (VPT, Jia et al., ECCV 2022).

    With `x` the class token, `E` the patches and `P_i` the prompts of block `L_i` (arXiv 2203.12119):

    - deep: `[x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])`, each block with prompts of its own, whose
      outputs are dropped;
    - shallow: the first block reads prompts, and those that follow what became of them.

    Both in the last `num_layers` blocks; the paper's forms are those of the tower's depth. Prompts have no position,
    so that it does not matter where in the sequence they stand; here they stand at its end, and SigLIP, which has no
    class token, is prompted in the same way. They begin uniform in `±sqrt(6 / (3 patch_size^2 + width))`.

    The prompts learn, and the head's, the loss's and the distillation's own parameters; the tower does not. A
    checkpoint holds what learned. `save_pretrained` writes the prompts beside the tower's weights, which are the
    original's.

    Args:
        epochs: See `Stage`.
        lr: See `Stage`.
        min_lr: See `Stage`.
        warmup_epochs: See `Stage`.
        weight_decay: See `Stage`; of the prompts too.
        num_layers: Number of last blocks that are prompted.
        num_prompts: Prompts that a block reads.
        deep: Whether each block has its own.

    Raises:
        UserError: An argument is out of its range; or, when the model is made, the tower is too short, or another
            stage changes it.

    Example:
        >>> from ovml import OVMultiLabelClassifier
        >>> model = OVMultiLabelClassifier("ovml-demo", ["red circle"], stages=[VisualPromptStage(num_prompts=4)])
        >>> [len(parameter) for parameter in model.parameters() if parameter.requires_grad]
        [4, 4]
    """

    name = "visual_prompt"
    added = frozenset({PROMPTS})

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 2,
        weight_decay: float = 0.0,
        num_layers: int = 2,
        num_prompts: int = 10,
        deep: bool = True,
    ) -> None:
        super().__init__(epochs, lr, min_lr, warmup_epochs, weight_decay, 1.0, num_layers)
        if num_layers < 1 or num_prompts < 1:
            raise UserError(
                f"stage 'visual_prompt': num_layers and num_prompts must be at least 1; got num_layers={num_layers}, "
                f"num_prompts={num_prompts}"
            )
        self.num_prompts = num_prompts
        self.deep = deep

    def prepare(self, model: OVMultiLabelClassifier) -> None:
        """Put prompts into the last blocks."""
        check_alone(self, model)
        tower = model.image_encoder.vision_model
        bound = math.sqrt(6 / (3 * tower.config.patch_size**2 + tower.config.hidden_size))
        first = len(tower.encoder.layers) - len(model.image_encoder.tail(self.num_layers).layers)
        last = len(tower.encoder.layers) - 1
        for i in range(first, last + 1):
            layer, prompts = tower.encoder.layers[i], None
            if self.deep or i == first:
                like = next(layer.parameters())
                prompts = nn.Parameter(like.new_empty(self.num_prompts, tower.config.hidden_size))
                nn.init.uniform_(prompts, -bound, bound)
            dropped = self.num_prompts if self.deep or i == last else 0
            if prompts is not None or dropped:
                tower.encoder.layers[i] = PromptedBlock(layer, prompts, dropped)

    def parameter_groups(self, model: OVMultiLabelClassifier) -> list[dict[str, Any]]:
        """The prompts, then the other parts' own parameters."""
        layers = model.image_encoder.tail(self.num_layers).layers
        prompts = [p for name, p in layers.named_parameters() if name.endswith(f".{PROMPTS}")]
        return decay_groups(prompts, "prompts", self.lr, self.weight_decay) + self.part_groups(model)


class PromptedBlock(nn.Module):
    """A block that reads prompts beside its tokens.

    Args:
        base_layer: The block.
        visual_prompts: `[K, W]`, put after the tokens; `None` where the block before left its own there.
        num_dropped: Tokens to take off the end of what the block gives.

    Example:
        >>> block = PromptedBlock(nn.TransformerEncoderLayer(8, 2), nn.Parameter(torch.zeros(4, 8)), num_dropped=4)
        >>> block(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, base_layer: nn.Module, visual_prompts: nn.Parameter | None, num_dropped: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.visual_prompts = visual_prompts
        self.num_dropped = num_dropped

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Run hidden states `[B, T, W]` through the block."""
        if self.visual_prompts is not None:
            prompts = self.visual_prompts.to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
            hidden_states = torch.cat([hidden_states, prompts], dim=1)
        hidden_states = self.base_layer(hidden_states, attention_mask)
        return hidden_states[:, : hidden_states.shape[1] - self.num_dropped]


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's weights under the names that it has without adapters, with what the adapters add.

    >>> list(plain_state(nn.Linear(2, 3)))
    ['weight', 'bias']
    """
    state = dict(module.state_dict())
    for name, layer in module.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weight = f"{name}.base_layer.weight"
            state[weight] = sum((layer.get_delta_weight(a) for a in layer.active_adapters), start=state[weight])
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.lora_")}
    return {key.replace(".base_layer.", "."): value for key, value in state.items()}


def check_alone(stage: VisionStage, model: OVMultiLabelClassifier) -> None:
    """See that no other stage changes the tower.

    Raises:
        UserError: One does.
    """
    others = [other.name for other in model.stages if isinstance(other, VisionStage) and other is not stage]
    if others:
        raise UserError(f"stages: {stage.name!r} and {others[0]!r} change the same tower; list one of them")
