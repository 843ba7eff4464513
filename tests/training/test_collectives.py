"""What processes exchange during a fit is on their device: NCCL has no CPU tensors."""

import pytest
import torch
from devices import OnDevice, pretended_nccl
from lightning.pytorch import Trainer
from torch import distributed
from two import exit_codes, process_group

from ovml import OVMultiLabelClassifier, PromptStage
from ovml.data import DemoDataModule
from ovml.metrics import PlattScaling
from ovml.training.callbacks import EvaluationPlots

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


class LogsOnTheCPU(OVMultiLabelClassifier):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("extra", torch.tensor(1.0), sync_dist=True)


def fit(kind, clip, folder):
    data = DemoDataModule(8, 5, cache_dir=f"{folder}/cache", clip=clip, batch_size=2)
    stage = PromptStage(epochs=1, warmup_epochs=0)
    model = kind(clip, data.vocabulary, stages=[stage], calibrator=PlattScaling("per-label", min_present=1))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [EvaluationPlots(f"{folder}/plots")]
    trainer = Trainer(accelerator="cpu", devices=2, strategy=OnDevice(), max_epochs=1, callbacks=callbacks,
                      enable_model_summary=False, **quiet)  # fmt: skip
    trainer.fit(model, datamodule=data)
    metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    trainer.test(model, datamodule=data, verbose=False)
    return metrics, model.model.calibration


def worker(rank, folder, clip):
    with process_group(rank, folder):
        with pretended_nccl() as called:
            found = fit(OVMultiLabelClassifier, clip, folder)
        with pretended_nccl(), pytest.raises(RuntimeError, match="all_reduce: No backend .* device type cpu"):
            fit(LogsOnTheCPU, clip, folder)
    torch.save((*found, called), f"{folder}/{rank}.pt")


def test_a_fit_and_a_test_exchange_tensors_of_the_device_only(tiny, tmp_path):
    assert exit_codes(worker, str(tmp_path), tiny) == [0, 0]
    (metrics, calibration, called), other = (torch.load(tmp_path / f"{r}.pt", weights_only=False) for r in range(2))
    assert other == (metrics, calibration, called)
    assert {"all_reduce", "all_gather", "all_to_all_single"} <= set(called)
    assert {"val/zsl/mAP", "val/calibration/ECE"} < metrics.keys()
    assert calibration.label_thresholds
