"""Worker processes of data loaders: how many, how long they live, and that they change no order."""

import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from ovml.data import DemoDataModule, MultiLabelDataModule
from ovml.data import workers as machine
from ovml.data.features import FeatureStore, file_name, write_features
from ovml.data.plain import plain_dataset
from ovml.vocabulary import LabelVocabulary

QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)


class Process:
    """A transform that gives the id of the process that reads."""

    def __call__(self, image):
        return torch.tensor([os.getpid()])


class Greys(MultiLabelDataModule):
    """Grey images, read by `Process`."""

    vocabulary = LabelVocabulary(("a", "b"))
    train_transform = eval_transform = Process()
    size, streamed = 12, False

    def dataset(self, split):
        rows = [{"image": Image.new("RGB", (8, 8)), "positive": [i % 2]} for i in range(self.size)]
        rows = plain_dataset(rows, self.vocabulary, split)
        return rows.to_iterable_dataset(num_shards=4) if self.streamed else rows


class Reader(LightningModule):
    """Keeps the rows of each training epoch, and the processes that read them and those of the validations."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.rows, self.pids, self.validation_pids = {}, set(), set()

    def training_step(self, batch, batch_idx):
        self.rows.setdefault(self.current_epoch, []).extend(batch["image_id"])
        self.pids |= set(batch["pixel_values"].flatten().tolist())
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.validation_pids |= set(batch["pixel_values"].flatten().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tiny, workers, epochs=3, streamed=False, checkpoint=None, **options):
    data, reader = Greys(clip=tiny, batch_size=2, num_workers=workers, **options), Reader()
    data.streamed, data.streamed_rows = streamed, Greys.size
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, **QUIET)
    trainer.fit(reader, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return reader, trainer


@pytest.fixture
def on(monkeypatch):
    """Pretend to run on a machine with some cores that starts processes in some way."""

    def pretend(cores=8, method="fork", script="train.py", memory=2**40):
        monkeypatch.setattr(machine, "cores", lambda: cores)
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: method)
        monkeypatch.setattr(machine, "shared_memory", lambda: memory)
        monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)

    return pretend


@pytest.mark.parametrize(
    ("cores", "processes", "expected"),
    [(2, 1, 2), (8, 1, 8), (200, 1, 16), (32, 4, 8), (64, 8, 8), (4, 8, 0), (1, 1, 1)],
)
def test_there_is_a_worker_per_core_divided_among_the_processes_of_a_machine(on, cores, processes, expected):
    on(cores)
    assert machine.choose_workers(range(10_000), processes) == expected


def test_few_rows_and_streams_start_no_process(on, tiny):
    on(8)
    assert [machine.choose_workers(range(size)) for size in (1, 127, 128)] == [0, 0, 8]
    data = Greys(clip=tiny)
    assert data.workers_for(data.dataset("train")) == 0
    data.size, data.streamed = 200, True
    assert data.workers_for(data.dataset("train")) == 0
    data.streamed = False
    assert data.workers_for(data.dataset("train")) == 8


def test_a_container_has_fewer_by_its_quota_and_its_shared_memory(on, tmp_path, monkeypatch):
    on(8, memory=64 * 2**20)
    assert [machine.choose_workers(range(10_000), 1, size) for size in (0, 2**20, 5 * 2**20, 2**26)] == [8, 8, 2, 0]
    monkeypatch.undo()
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    of_all = machine.cores()
    for text, expected in (
        ("max 100000", of_all),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("9900000 100000", of_all),
    ):
        (tmp_path / "cpu.max").write_text(text)
        assert machine.cores() == expected


def test_the_start_method_is_left_to_be_chosen(on):
    code = "import multiprocessing as m; from ovml.data.workers import choose_workers as c; c(range(999)); "
    subprocess.run([sys.executable, "-c", code + "m.set_start_method('spawn')"], check=True)


def test_a_number_of_workers_is_a_number(tiny):
    assert [Greys(clip=tiny, num_workers=n).num_workers for n in (None, 0, 3)] == [0, 0, 3]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_no_script_of_a_user_is_run_again_by_processes_it_did_not_ask_for(on, method):
    for script, workers in (("train.py", 0), ("/bin/ovml", 8), ("/work/ovml/train.py", 0)):
        on(8, method, script)
        assert machine.choose_workers(range(10_000)) == workers


def test_what_is_asked_for_is_done_and_the_rest_follows_data_and_trainer(on, tiny, tmp_path):
    on(8)
    rows = range(10_000)
    assert Greys(clip=tiny).workers_for(rows) == 8
    assert [Greys(clip=tiny, num_workers=n).workers_for(rows, quick=True) for n in (0, 3)] == [0, 3]
    assert DemoDataModule(clip=tiny).workers_for(rows) == 0
    data = Greys(clip=tiny)
    data.trainer = SimpleNamespace(num_devices=4)
    assert data.workers_for(rows) == 2
    data.size = 200
    write_features(tmp_path / file_name(0), 200, iter([torch.zeros(200, 2, 4)]))
    data.trainer = None
    assert data.train_dataloader().num_workers == 8
    data.feature_stores = {"train": FeatureStore(tmp_path)}
    assert data.train_dataloader().num_workers == 0


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True), ("mps", False)])
def test_memory_is_pinned_for_the_device_of_the_trainer(tiny, device, pinned):
    data = Greys(clip=tiny)
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(strategy=strategy, lightning_module=None, global_rank=0, world_size=1)
    assert data.val_dataloader().pin_memory == data.train_dataloader().pin_memory == pinned


@pytest.mark.parametrize("streamed", [False, True])
def test_workers_live_for_all_epochs_and_read_what_new_ones_would(tiny, streamed):
    data = Greys(clip=tiny, batch_size=2, num_workers=1)
    data.streamed, data.streamed_rows = streamed, Greys.size
    expected = {}
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        expected[epoch] = [image_id for batch in loader for image_id in batch["image_id"]]
    reader, _ = fit(tiny, 1, streamed=streamed)
    assert reader.rows == expected
    assert len({tuple(rows) for rows in expected.values()}) == 3
    assert len(reader.pids) == len(reader.validation_pids) == 1
    assert not (reader.pids | reader.validation_pids) & {os.getpid()}
    assert not {child.pid for child in multiprocessing.active_children()} & (reader.pids | reader.validation_pids)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_reads_the_rows_of_its_epoch(tiny, tmp_path, workers):
    whole, _ = fit(tiny, 0)
    _, trainer = fit(tiny, workers, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    rest, _ = fit(tiny, workers, checkpoint=tmp_path / "one.ckpt")
    assert rest.rows == {epoch: whole.rows[epoch] for epoch in (1, 2)}
