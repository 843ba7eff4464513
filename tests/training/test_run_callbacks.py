"""Callbacks that `ovml fit` adds to every stage's trainer."""

import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ovml.training.callbacks.run import EpochSeed


@pytest.fixture(autouse=True)
def own_random_state(monkeypatch):
    """Nothing that is seeded here reaches other tests."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


def drawn(monkeypatch, seed=3, stage=1, epoch=2, rank=1):
    """Numbers that an epoch draws from each generator."""
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    EpochSeed(stage).on_train_epoch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None)
    assert os.environ["PL_GLOBAL_SEED"] == str(seed), "the run's seed stays"
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002 - the one that is seeded


def test_an_epoch_draws_numbers_of_its_own_seed_stage_epoch_and_process(monkeypatch):
    first = drawn(monkeypatch)
    torch.rand(7)
    assert drawn(monkeypatch) == first
    others = [drawn(monkeypatch, **{name: 0}) for name in ("seed", "stage", "epoch", "rank")]
    for generator in zip(first, *others, strict=True):
        assert len(set(generator)) == 5
