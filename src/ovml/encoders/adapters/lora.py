"""Low-rank adapters in the blocks of a vision tower."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ovml.encoders.adapters.base import TowerAdapter
from ovml.encoders.clip import ImageEncoder
from ovml.utils.errors import UserError, check_at_most


class LoRA(TowerAdapter):
    """Low-rank adapters beside linear maps of the last blocks (Hu et al., ICLR 2022, arXiv 2106.09685); `peft`'s.

    A linear map `W x + b` becomes `W x + b + alpha / rank * B A x`, with `A [rank, in]` and `B [out, rank]`. `B` is
    initialised to zero, so the untrained model equals the original bit for bit. A saved model has
    `W + alpha / rank * B A` as plain weights.

    Args:
        num_layers: Number of last blocks that are adapted.
        rank: Rank of an adapter.
        alpha: Scale of an adapter, divided by the rank.
        dropout: Share of an adapter's inputs that are dropped in training.
        targets: Names of the linear maps that are adapted, of `q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1` and
            `fc2`. Default: `q_proj` and `v_proj`, as in the paper.

    Raises:
        UserError: An argument is out of its range; or, in `attach`, `peft` is missing, a block has no such maps, or the
            tower is too short.
    """

    wraps_blocks = False

    def __init__(
        self,
        num_layers: int = 2,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
    ) -> None:
        if num_layers < 1 or rank < 1 or alpha <= 0 or not 0 <= dropout < 1 or targets == []:
            raise UserError(
                f"LoRA: num_layers and rank must be at least 1, alpha above 0, dropout from 0 to below 1, and targets "
                f"not empty; got num_layers={num_layers}, rank={rank}, alpha={alpha}, dropout={dropout}, "
                f"targets={targets}"
            )
        check_at_most(self, 2**12, rank=rank)
        self.num_layers = num_layers
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets

    def attach(self, encoder: ImageEncoder, embed_dim: int) -> None:
        """Add low-rank maps to the last blocks."""
        try:
            import peft
        except ImportError as error:
            raise UserError(
                "LoRA: needs peft; pip install 'ovml[peft]', or pass stages=[] to only use a saved model"
            ) from error
        targets = self.targets or ["q_proj", "v_proj"]
        layers = encoder.tail(self.num_layers).layers
        linear = {n.rpartition(".")[2] for n, m in layers[0].named_modules() if isinstance(m, nn.Linear)}
        if unknown := sorted(set(targets) - linear):
            raise UserError(f"LoRA: targets: no {unknown[0]!r}; a block has {', '.join(sorted(linear))}")
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=cast(Any, self.alpha), lora_dropout=self.dropout, target_modules=targets
        )
        for layer in layers:
            peft.inject_adapter_in_model(config, layer)

    def parameters(self, encoder: ImageEncoder) -> list[nn.Parameter]:
        """`A` and `B` of every adapted map."""
        layers = encoder.tail(self.num_layers).layers
        return [parameter for name, parameter in layers.named_parameters() if ".lora_" in name]
