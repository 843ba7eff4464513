"""The base class of adapters of a vision tower, which leave its weights unchanged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from ovml.encoders.clip import ImageEncoder, ImageTail
from ovml.utils.parts import Part

Module = TypeVar("Module", bound=nn.Module)


class TowerAdapter(Part, ABC):
    """Learned modules beside the frozen blocks at the end of a vision tower.

    An adapter wraps a block or a linear map; the wrapper keeps the original as `base_layer`.

    Attributes:
        num_layers: Number of last blocks that are adapted.
        wraps_blocks: Whether blocks are replaced, rather than linear maps inside them.
        added: Names of the modules and parameters that a saved model keeps beside the tower's own weights.
    """

    added: ClassVar[frozenset[str]] = frozenset()
    wraps_blocks: ClassVar[bool] = True
    num_layers: int

    @abstractmethod
    def attach(self, encoder: ImageEncoder, embed_dim: int) -> None:
        """Wrap the last blocks of a tower in place.

        Args:
            encoder: The tower.
            embed_dim: Width `D` of global, patch and label embeddings.

        Raises:
            UserError: The tower is too short, or of a kind that cannot be adapted.
        """

    def parameters(self, encoder: ImageEncoder) -> list[nn.Parameter]:
        """The parameters that the adapter added to the tower. Default: those of the names in `added`."""
        layers = encoder.tail(self.num_layers).layers
        return [parameter for name, parameter in layers.named_parameters() if self.added & set(name.split("."))]

    def attach_to_teacher(self, encoder: ImageEncoder, teacher: ImageTail) -> None:
        """Change the end of the original tower where its features would not compare with the adapted tower's.

        Args:
            encoder: The adapted tower.
            teacher: Its last blocks as they were, of which there may be none, and what follows them.
        """


def without_adapters(module: Module) -> Module:
    """Undo every wrapper inside a module, in place; returns the module.

    >>> from ovml.encoders.adapters.visual_prompts import PromptedBlock
    >>> without_adapters(nn.Sequential(PromptedBlock(nn.Identity(), None, 0)))
    Sequential(
      (0): Identity()
    )
    """
    for name, child in list(module.named_children()):
        while isinstance(inner := getattr(child, "base_layer", None), nn.Module):
            child = inner
            setattr(module, name, child)
        without_adapters(child)
    return module


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module under the names that they have without adapters, low-rank updates merged.

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
