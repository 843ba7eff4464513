"""Processes share the work of a feature cache, and none waits for one that fails."""

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import distributed
from two import exit_codes, process_group

from ovml import OVMultiLabelClassifier, PromptStage, UserError
from ovml.data import DemoDataModule, features
from ovml.encoders import ImageEncoder
from ovml.training import shared_work
from ovml.training.callbacks import FeatureCache, feature_cache

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)
TRAIN, VALIDATION = 17, 7


def fill(clip, folder, cache, monkeypatch, devices=1, at_image=None, fail=None):
    """Fit with a feature cache of files of 3 rows; returns the images that this process ran before the stage began."""
    monkeypatch.setattr(features, "ROWS_PER_FILE", 3)
    monkeypatch.setattr(shared_work, "INTERVAL", 0.0)
    data = DemoDataModule(TRAIN, VALIDATION, cache_dir=f"{folder}/data", clip=clip, batch_size=2, augment=False)
    model = OVMultiLabelClassifier(clip, data.vocabulary, stages=[PromptStage(epochs=1, warmup_epochs=0)])
    seen, trunk = [], ImageEncoder.trunk

    def counted(self, pixels, layers):
        seen.append(len(pixels))
        if at_image is not None and sum(seen) > at_image:
            fail()
        return trunk(self, pixels, layers)

    monkeypatch.setattr(ImageEncoder, "trunk", counted)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    strategy = "ddp" if devices > 1 else "auto"
    Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_epochs=1, enable_model_summary=False,
            callbacks=[FeatureCache(f"{folder}/{cache}")], **quiet).fit(model, data)  # fmt: skip
    return sum(seen)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(Path(folder).rglob("*.npy"))}


def worker(rank, folder, clip):
    def broken():
        raise UserError("image 7 is broken")

    def run(cache, **failure):
        with pytest.MonkeyPatch.context() as patch:
            return fill(clip, folder, cache, patch, devices=2, **failure if rank == 1 else {})

    with process_group(rank, folder):
        found = {"whole": run("whole"), "again": run("whole")}
        message = r"^image 7 is broken$" if rank else r"^process 1 has failed: image 7 is broken$"
        with pytest.raises(UserError, match=message):
            run("failed", at_image=6, fail=broken)
        found["after"] = len(contents(f"{folder}/failed"))
        distributed.barrier()
        found["resumed"] = run("failed")
        torch.save(found, f"{folder}/{rank}.pt")
        with pytest.raises(UserError, match="another process has ended or does not answer"):
            run("killed", at_image=4, fail=lambda: os._exit(3))
        Path(f"{folder}/noticed").touch()


def test_processes_compute_the_files_of_one_and_notice_each_others_end(tiny, tmp_path, monkeypatch):
    assert exit_codes(worker, str(tmp_path), tiny) == [0, 3]
    assert (tmp_path / "noticed").exists()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    assert fill(tiny, tmp_path, "alone", monkeypatch) == TRAIN + VALIDATION
    expected = contents(tmp_path / "alone")
    assert len(expected) == 6 + 3
    assert contents(tmp_path / "whole") == contents(tmp_path / "failed") == expected
    assert (first["whole"], second["whole"]) == (9 + 4, 8 + 3), "files of 3 rows in turn"
    assert first["again"] == second["again"] == 0
    done = first["after"]
    assert 0 < done < 6
    assert first["resumed"] + second["resumed"] == TRAIN + VALIDATION - 3 * done


def test_what_is_left_of_an_interrupted_run_serves_one_process(tiny, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        fill(tiny, tmp_path, "cache", patch, at_image=10, fail=interrupt)
    done = len(contents(tmp_path / "cache"))
    assert done == 3
    assert fill(tiny, tmp_path, "cache", monkeypatch) == TRAIN + VALIDATION - 3 * done
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize(("shared", "expected"), [(True, (0, 5, 8)), (False, (1, 1, 4))])
def test_machines_share_a_folder_that_both_see(tmp_path, shared, expected):
    class Work:
        def exchange(self, value):
            return [value] * 7 + [shared if isinstance(value, bool) else value]

    class OfTwoMachines:
        is_global_zero, global_rank, world_size = True, 5, 8
        node_rank, local_rank, num_devices = 1, 1, 4

    assert feature_cache._sharers(OfTwoMachines, tmp_path, Work()) == expected
    assert not list(tmp_path.iterdir())
