"""What parts print."""

import inspect

import pytest
import torch

import ovml.distillation
import ovml.encoders.adapters
import ovml.heads
import ovml.losses
import ovml.metrics
import ovml.prompts
import ovml.training
from ovml import OVMultiLabelClassifier
from ovml.heads import QueryHead, TwoStreamHead
from ovml.prompts import ContextPrompt
from ovml.utils.parts import Part

ROOMS = (
    *(ovml.heads, ovml.losses, ovml.prompts, ovml.distillation, ovml.encoders.adapters, ovml.metrics, ovml.training),
)
NEEDING = ("NamedLabels", "PromptFusionHead")
"""Parts that cannot be made without arguments."""
CLASSES = {
    name: cls
    for room in ROOMS
    for name, cls in ((name, getattr(room, name)) for name in dir(room))
    if inspect.isclass(cls) and issubclass(cls, Part) and not inspect.isabstract(cls) and name not in NEEDING
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_part_prints_its_arguments(name):
    printed = " ".join(repr(CLASSES[name]()).split())
    assert printed.startswith(f"{name}(")
    arguments = inspect.signature(CLASSES[name]).parameters.values()
    for argument in (a for a in arguments if a.kind is a.POSITIONAL_OR_KEYWORD):
        assert f"{argument.name}=" in printed
    assert CLASSES.keys() >= {"TwoStreamHead", "RankingLoss", "CoOpPrompt", "PatchDistillation", "LoRAStage", "LoRA"}


def test_what_was_changed_is_printed():
    head = TwoStreamHead(top_k=3)
    assert repr(head) == "TwoStreamHead(top_k=3, normalize=True)"
    head.top_k = 4
    assert repr(head) == "TwoStreamHead(top_k=4, normalize=True)"


def test_modules_keep_the_tree_of_torch(tiny):
    head = QueryHead(num_layers=2)
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head, ContextPrompt("a {}"))
    lines = str(model).splitlines()
    assert "    (head): QueryHead(" in lines
    assert "      num_heads=1, hidden_dim=None, num_layers=2, temperature=0.05, scale=1.0, global_weight=0.0" in lines
    assert "      (layers): ModuleList(" in lines
    assert str(model).count("LayerNorm") == sum(isinstance(m, torch.nn.LayerNorm) for m in _printed(model))
    assert "      template='a {}'" in lines


def _printed(module):
    """Modules, of which torch prints equal ones that follow each other once."""
    before = None
    for child in module.children():
        if isinstance(module, torch.nn.ModuleList) and repr(child) == before:
            continue
        before = repr(child)
        yield child
        yield from _printed(child)
