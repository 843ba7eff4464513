"""Stages refuse settings that cannot train."""

import math

import pytest

from ovml import OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.training import HeadStage


@pytest.mark.parametrize("stage", [VisionStage, PromptStage, HeadStage])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "min_lr", "weight_decay", "warmup_epochs"])
def test_rates_out_of_range_are_one_line(stage, name, value):
    finite = math.isfinite(value)
    text = f"stage '{stage.name}': .*{name}" if finite else f"{stage.__name__}: {name} must be a finite number; got"
    with pytest.raises(UserError, match=text):
        stage(**{name: value})


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_layer_decay_is_positive(value):
    with pytest.raises(UserError, match="stage 'vision': layer_decay must be greater than 0"):
        VisionStage(layer_decay=value)


def test_layer_decay_is_a_number():
    with pytest.raises(UserError, match="VisionStage: layer_decay must be a finite number; got nan"):
        VisionStage(layer_decay=math.nan)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_the_weight_of_the_distillation_is_not_negative(tiny, value):
    with pytest.raises(UserError, match="model: distillation_weight must be 0 or greater, and finite"):
        OVMultiLabelClassifier(tiny, ["cat", "dog"], distillation_weight=value)
