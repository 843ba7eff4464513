"""The average of the weights over training."""

import json

import lightning.pytorch as pl
import pytest
import torch
from commands import SMALL, ovml_here
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from stopper import ControlC, ended_by
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ovml.cli.main import main
from ovml.training.callbacks.averaging import LearnedEMA
from ovml.utils.errors import UserError

DECAY = 0.7


class Regression(pl.LightningModule):
    """Notes its weight after each step and in each validation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.learning = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1)
        self.steps, self.validated = [], []

    def training_step(self, batch, batch_idx):
        return self.learning(self.frozen(batch[0])).square().mean()

    def on_train_batch_end(self, *_):
        self.steps.append((self.current_epoch, self.global_step, self.learning.weight.detach().clone()))

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.learning.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.learning.parameters(), 0.1)


def naive(model, start, each_epoch):
    """The average after each epoch, by the recursion."""
    average, weight, last, after = start, start, 0, {}
    for epoch, step, stepped in model.steps:
        if each_epoch and epoch not in after:
            average = weight
        if step > last:
            average, last = DECAY * average + (1 - DECAY) * stepped, step
        weight, after[epoch] = stepped, average
    return list(after.values())


def rows():
    return DataLoader(TensorDataset(torch.randn(20, 3, generator=torch.Generator().manual_seed(1))), batch_size=4)


def trainer_with(*callbacks, max_epochs=3, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": max_epochs, "limit_val_batches": 1, "callbacks": [*callbacks], **quiet, **options}
    return pl.Trainer(accelerator="cpu", **options)


@pytest.mark.parametrize("each_epoch", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_that_of_a_naive_loop(each_epoch, accumulate):
    model = Regression()
    start, frozen = model.learning.weight.detach().clone(), model.frozen.weight.clone()
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": False}
    trainer_with(LearnedEMA(DECAY, each_epoch), **options).fit(model, rows(), rows())
    unaveraged = model.steps[-1][2]
    expected = naive(model, start, each_epoch)
    assert torch.equal(model.validated[0], start)  # before training
    torch.testing.assert_close(model.validated[1:], expected)
    assert len(expected) == 3
    assert torch.equal(model.learning.weight, model.validated[-1])
    assert not torch.allclose(model.learning.weight, unaveraged)
    assert torch.equal(model.frozen.weight, frozen)


def test_a_checkpoint_is_the_average_for_the_trainer_that_wrote_it_too(tmp_path):
    model = Regression()
    trainer = trainer_with(LearnedEMA(DECAY), ModelCheckpoint(tmp_path))
    trainer.fit(model, rows(), rows())
    average = model.learning.weight.detach().clone()
    trainer.validate(model, rows(), ckpt_path=trainer.checkpoint_callback.best_model_path, verbose=False)
    assert torch.equal(model.validated[-1], average)
    assert torch.equal(model.learning.weight, average)


def test_where_nothing_is_left_to_train_the_model_is_the_average(tmp_path):
    model, again = Regression(), Regression()
    trainer_with(LearnedEMA(DECAY), ModelCheckpoint(tmp_path, filename="last")).fit(model, rows(), rows())
    resumed = trainer_with(LearnedEMA(DECAY), enable_checkpointing=False)
    resumed.fit(again, rows(), rows(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    resumed.validate(again, rows(), verbose=False)
    assert torch.equal(again.learning.weight, model.learning.weight)
    assert torch.equal(again.validated[-1], model.learning.weight)


@pytest.mark.parametrize("weights_only", [False, True])
def test_each_checkpoint_is_the_average_so_far_and_the_state_is_the_models_again(tmp_path, weights_only):
    model = Regression()
    start = model.learning.weight.detach().clone()
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_weights_only=weights_only)
    trainer_with(LearnedEMA(DECAY), every).fit(model, rows(), rows())
    files = [torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True) for epoch in range(3)]
    torch.testing.assert_close([file["state_dict"]["learning.weight"] for file in files], naive(model, start, False))
    model.learning.weight.data.zero_()
    assert not model.state_dict()["learning.weight"].any()


def checkpoint(root, stage):
    return torch.load(root / "version_0" / stage / "last.ckpt", weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """An unbroken run, and one that was cut in both stages and resumed."""
    root = tmp_path_factory.mktemp("runs")
    average = [
        "--trainer.callbacks+",
        "ovml.training.callbacks.LearnedEMA",
        "--trainer.callbacks.decay",
        str(DECAY),
    ]
    fit = ["fit", "--config", config, *SMALL, *average]
    assert ovml_here(*fit, "--trainer.default_root_dir", str(root / "whole")) == 0
    cut, last = [*fit, "--trainer.default_root_dir", str(root / "cut")], ["--ckpt_path", "last"]
    assert ovml_here(*cut, *ended_by(ControlC, "vision", 1)) == 130
    assert ovml_here(*cut, *ended_by(ControlC, "prompt", 1), *last) == 130
    assert ovml_here(*cut, *last) == 0
    return root


@pytest.mark.parametrize("stage", ["vision", "prompt"])
def test_a_cut_run_resumes_to_the_same_average(runs, stage):
    whole, resumed = checkpoint(runs / "whole", stage), checkpoint(runs / "cut", stage)
    assert same(whole["state_dict"], resumed["state_dict"])
    weights, again = (found["callbacks"]["LearnedEMA"]["weights"] for found in (whole, resumed))
    assert same(weights, again)
    assert weights.keys() < whole["state_dict"].keys()  # of what learned, those of this stage alone
    assert not same(weights, {name: whole["state_dict"][name] for name in weights})
    results = [json.loads((runs / kind / "version_0" / "results.json").read_text()) for kind in ("whole", "cut")]
    assert results[0] == results[1]


def test_the_next_stage_starts_from_the_average(runs):
    vision, prompt = (checkpoint(runs / "whole", stage)["state_dict"] for stage in ("vision", "prompt"))
    assert {name for name in vision if not torch.equal(vision[name], prompt[name])} == {"model.prompt.context"}


def test_what_was_validated_is_what_the_checkpoint_holds(runs):
    run = runs / "whole" / "version_0"
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    found, fitted = (json.loads((run / name).read_text()) for name in ("validate_results.json", "results.json"))
    for stage in ("vision", "prompt"):
        assert found[stage] == pytest.approx(fitted[stage], abs=1e-6, nan_ok=True)


def test_a_training_without_the_average_may_go_on_with_it(tmp_path):
    model = Regression()
    trainer_with(ModelCheckpoint(tmp_path, filename="last"), max_epochs=1).fit(model, rows(), rows())
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trainer_with(LearnedEMA(0.999999), enable_checkpointing=False).fit(
        model, rows(), rows(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    for name in before:
        torch.testing.assert_close(model.state_dict()[name], before[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_ends_in_one_line(config, capsys, decay):
    average = [
        "--trainer.callbacks+",
        "ovml.training.callbacks.LearnedEMA",
        f"--trainer.callbacks.decay={decay}",
    ]
    assert main(["fit", "--config", config, *average]) == 2
    error = capsys.readouterr().err.strip()
    assert f"decay must be at least 0 and below 1; got {decay}" in error
    assert "\n" not in error


def test_a_model_in_shards_is_refused():
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
    trainer = pl.Trainer(accelerator="cpu", strategy=strategy, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="cannot average a model in shards; take --trainer.strategy ddp"):
        LearnedEMA().setup(trainer, Regression(), "fit")
