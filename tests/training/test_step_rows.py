"""What is counted of a batch before it goes to its device, and when nothing is."""

import torch

import ovml
from ovml import OVMultiLabelClassifier, VisionStage
from ovml.data import DemoDataModule
from ovml.training.step_rows import changes_batches

QUIET = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}


class Dropping(DemoDataModule):
    """Drops the first row of each training batch on the device."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if not self.trainer.training:
            return batch
        return {k: v[1:] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


class Mixing(OVMultiLabelClassifier):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


def test_nothing_is_counted_where_a_hook_may_change_the_batch(tiny, tmp_path):
    options = {"train_size": 12, "eval_size": 4, "batch_size": 4, "cache_dir": tmp_path / "cache"}
    data, dropping = (kind(clip=tiny, **options) for kind in (DemoDataModule, Dropping))
    stages = [VisionStage(epochs=1, warmup_epochs=0)]
    model, mixing = (kind(tiny, data.vocabulary, stages=stages) for kind in (OVMultiLabelClassifier, Mixing))
    assert not changes_batches(model, data)
    assert not changes_batches(model, None)
    assert changes_batches(model, dropping)
    assert changes_batches(mixing, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ovml.fit(model, dropping, default_root_dir=tmp_path / "runs", **QUIET)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
