"""The batch size and the precision of a stage."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.plugins import MixedPrecision

import ovml
from ovml import OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.data import DemoDataModule
from ovml.losses import BinaryCrossEntropy
from ovml.training.batches import divide
from ovml.training.precision import allow_tf32, precision_note
from ovml.training.trainers import stage_options

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def data(tmp_path, batch_size, train_size=16):
    return DemoDataModule(train_size, 4, batch_size=batch_size, augment=False, cache_dir=str(tmp_path / "data"))


@given(devices=st.integers(1, 16), each=st.integers(1, 200), most=st.integers(1, 100))
def test_devices_share_a_step_evenly_in_as_few_batches_as_fit(devices, each, most):
    found = divide(devices * each, devices, most)
    assert found.devices * found.images * found.accumulated == devices * each
    assert found.images <= most
    assert not any(each % n == 0 and each // n <= most for n in range(1, found.accumulated))


@pytest.mark.parametrize(("total", "devices", "most"), [(64, 3, 64), (2, 4, 64)])
def test_devices_that_do_not_divide_a_step(total, devices, most):
    assert divide(total, devices, most) is None


class Steps(pl.Callback):
    """Notes the images of each batch and the number of optimizer steps."""

    seen: dict = {}  # noqa: RUF012 - each stage has a copy of the callback

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        images, _ = self.seen.get(pl_module.stage.name, ([], 0))
        self.seen[pl_module.stage.name] = [*images, len(batch["image_id"])], trainer.global_step


def test_each_stage_has_its_own_batches(tmp_path, tiny):
    Steps.seen.clear()
    own = data(tmp_path, 4)
    stages = [VisionStage(epochs=1, warmup_epochs=0, batch_size=2), PromptStage(epochs=2, batch_size=8)]
    model = OVMultiLabelClassifier(tiny, own.vocabulary, stages=stages)
    ovml.fit(model, own, default_root_dir=tmp_path / "runs", callbacks=Steps(), **QUIET)
    assert Steps.seen == {"vision": ([2] * 8, 8), "prompt": ([4] * 8, 4)}
    assert own.batch_size == 4


def test_accumulated_batches_learn_what_one_batch_learns(tmp_path, tiny):
    contexts = []
    for batch_size, stage in ((8, PromptStage(epochs=2)), (2, PromptStage(epochs=2, batch_size=8))):
        torch.manual_seed(0)
        own = data(tmp_path, batch_size)
        model = OVMultiLabelClassifier(tiny, own.vocabulary, loss=BinaryCrossEntropy(), stages=[stage])
        ovml.fit(model, own, default_root_dir=tmp_path / f"runs{batch_size}", **QUIET)
        contexts.append(model.model.prompt.context.detach())
    untrained = OVMultiLabelClassifier(tiny, ["a"]).model.prompt.context
    assert (contexts[0] - untrained).abs().max() > 1e-3
    torch.testing.assert_close(*contexts, atol=1e-5, rtol=0)


def test_a_trainer_of_ones_own_follows_the_stage_and_the_next_stage_without_one(tmp_path, tiny):
    Steps.seen.clear()
    own = data(tmp_path, 4)
    stages = [VisionStage(epochs=1, warmup_epochs=0, batch_size=8), PromptStage(epochs=1)]
    model = OVMultiLabelClassifier(tiny, own.vocabulary, stages=stages)
    for stage in stages:
        model.start_stage(stage)
        options = {"enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}
        pl.Trainer(max_epochs=1, callbacks=Steps(), **options, **QUIET).fit(model, own)
    assert Steps.seen == {"vision": ([4] * 4, 2), "prompt": ([4] * 4, 4)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches 2: stage 'prompt': batch_size 8 accumul"),
        ({"devices": 3, "strategy": "ddp"}, "batch_size 8 cannot be divided among 3 devices"),
    ],
)
def test_what_cannot_be_followed_is_said_before_anything_runs(tmp_path, tiny, options, message):
    own = data(tmp_path, 4)
    model = OVMultiLabelClassifier(tiny, own.vocabulary, stages=[PromptStage(epochs=1, batch_size=8)])
    with pytest.raises(UserError, match=message):
        ovml.fit(model, own, default_root_dir=tmp_path / "runs", **options, **QUIET)
    assert not list((tmp_path / "runs").glob("*"))


def test_a_finder_of_batch_sizes_is_refused(tmp_path, tiny):
    own = data(tmp_path, 4)
    model = OVMultiLabelClassifier(tiny, own.vocabulary, stages=[PromptStage(epochs=1, batch_size=8)])
    trainer = pl.Trainer(max_epochs=1, callbacks=BatchSizeFinder(), default_root_dir=tmp_path, **QUIET)
    with pytest.raises(UserError, match="BatchSizeFinder: stage 'prompt': batch_size 8 is that of a step"):
        trainer.fit(model, own)


@pytest.mark.parametrize(
    ("given", "cuda", "expected"),
    [
        ({}, True, "16-mixed"),
        ({"accelerator": "auto"}, True, "16-mixed"),
        ({"precision": "32-true"}, True, None),
        ({"accelerator": "cpu"}, True, None),
        ({}, False, None),
    ],
)
def test_a_stage_s_precision_is_for_cuda_and_gives_way_to_the_trainer_s(tmp_path, monkeypatch, given, cuda, expected):
    from ovml.training import RunFolder

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    stage = PromptStage(precision="16-mixed")
    found = stage_options(stage, 0, RunFolder(tmp_path), {"logger": False, **given})
    assert found.get("precision") == expected


@pytest.mark.parametrize(
    ("given", "cuda", "bfloat16", "expected"),
    [
        ({}, True, True, "bf16-mixed"),
        ({"accelerator": "gpu"}, True, True, "bf16-mixed"),
        ({}, True, False, None),
        ({}, False, True, None),
        ({"accelerator": "cpu"}, True, True, None),
        ({"precision": "32-true"}, True, True, None),
        ({"plugins": [MixedPrecision("bf16-mixed", "cpu")]}, True, True, None),
        ({"strategy": "ddp_notebook"}, True, True, None),
    ],
)
def test_a_stage_that_says_no_precision_trains_in_bfloat16_where_it_is_fast(
    tmp_path, monkeypatch, given, cuda, bfloat16, expected
):
    from ovml.training import RunFolder

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    found = stage_options(PromptStage(), 0, RunFolder(tmp_path), {"logger": False, **given})
    assert found.get("precision") == expected


@pytest.mark.parametrize(
    ("given", "stage", "cuda", "before", "after"),
    [
        ({}, PromptStage(), True, "highest", "high"),
        ({"precision": "bf16-mixed"}, PromptStage(), True, "highest", "high"),
        ({"precision": "32-true"}, PromptStage(), True, "highest", "highest"),
        ({"precision": 32}, PromptStage(), True, "highest", "highest"),
        ({}, PromptStage(precision="16-mixed"), True, "highest", "highest"),
        ({}, PromptStage(), True, "medium", "medium"),
        ({"accelerator": "cpu"}, PromptStage(), True, "highest", "highest"),
        ({}, PromptStage(), False, "highest", "highest"),
    ],
)
def test_float32_products_use_tf32_on_cuda_unless_something_else_was_said(
    monkeypatch, given, stage, cuda, before, after
):
    chosen = [before]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    allow_tf32(given, [stage])
    assert chosen[-1] == after


@pytest.mark.parametrize(
    ("device", "precision", "products", "expected"),
    [
        ("cpu", "32-true", "highest", ""),
        ("cpu", "bf16-mixed", "highest", ", bf16-mixed"),
        ("cuda", "32-true", "highest", ", 32-true"),
        ("cuda", "bf16-mixed", "high", ", bf16-mixed, float32 products in TF32"),
    ],
)
def test_a_stage_says_its_precision(monkeypatch, device, precision, products, expected):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: products)
    trainer = SimpleNamespace(precision=precision, strategy=SimpleNamespace(root_device=torch.device(device)))
    assert precision_note(trainer) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "stage 'prompt': batch_size must be at least 1; got 0"),
        ({"precision": "half"}, "PromptStage: precision must be '32-true' or"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        PromptStage(**arguments)
