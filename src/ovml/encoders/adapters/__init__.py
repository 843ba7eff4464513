"""Adapters of a frozen vision tower: LoRA, visual prompts, RAM's ladder and ovml's form of it."""

from ovml.encoders.adapters.base import TowerAdapter, plain_state, without_adapters
from ovml.encoders.adapters.ladder import Ladder
from ovml.encoders.adapters.lora import LoRA
from ovml.encoders.adapters.ram import RAMLadder
from ovml.encoders.adapters.visual_prompts import VisualPrompts

__all__ = ["Ladder", "LoRA", "RAMLadder", "TowerAdapter", "VisualPrompts", "plain_state", "without_adapters"]
