"""Rows held out for validation."""

import pytest
from lightning.pytorch import seed_everything

from ovml.data.samplers import hold_out
from ovml.utils.errors import UserError


def test_the_same_rows_are_held_out_whatever_the_seed_of_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    found = []
    for seed in (0, 1, 2):
        seed_everything(seed, verbose=False)
        found.append([hold_out(50, 7, split).tolist() for split in ("train", "validation")])
    assert found[0] == found[1] == found[2]
    train, held = found[0]
    assert len(held) == 7
    assert sorted([*train, *held]) == list(range(50))
    assert (train, held) == (sorted(train), sorted(held))


@pytest.mark.parametrize("size", [-1, 0, 50, 51])
def test_some_rows_are_left_for_both(size):
    with pytest.raises(UserError, match=f"validation_size must be less than the 50 training images; got {size}"):
        hold_out(50, size, "train")
