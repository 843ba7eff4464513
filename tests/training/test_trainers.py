"""All stages in one call, and whole checkpoints."""

import logging
import os
import tempfile
import warnings

import datasets
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

import ovml
from ovml import OVMultiLabelClassifier, PromptStage, VisionStage, load_model
from ovml.cli.main import machine_fault
from ovml.data import DemoDataModule
from ovml.heads import QueryHead
from ovml.training.checkpoint_io import WholeCheckpointIO, write_whole_checkpoints

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
STAGES = [VisionStage(epochs=2, warmup_epochs=0), PromptStage(epochs=1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("data"))
    return DemoDataModule(train_size=16, eval_size=8, batch_size=8, num_workers=0, cache_dir=cache)


def test_one_call_trains_all_stages_and_resumes(data, tiny, tmp_path, capsys):
    model = OVMultiLabelClassifier(tiny, data.vocabulary, stages=STAGES)
    run = ovml.fit(model, data, default_root_dir=tmp_path, max_epochs=1, **QUIET)
    assert run.path == tmp_path / "version_0"
    assert list(run.results) == ["zero-shot", "vision", "prompt"]
    printed, said = capsys.readouterr()
    assert "ovml: stage 1 of 2: vision\n" in said
    assert "ovml: stage 2 of 2: prompt\n" in said
    assert "│ ZSL    │ zero-shot CLIP │" in printed
    assert printed.endswith(f"run: {run.path}\ntag: ovml tag IMAGE --labels A,B --model {run.path}\n")
    assert torch.load(run.checkpoint("vision"), weights_only=True)["epoch"] == 0
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(load_model(run.path)(pixels), model.eval()(pixels))

    again = OVMultiLabelClassifier(tiny, data.vocabulary, stages=STAGES)
    run.checkpoint("prompt").unlink()
    (run.path / "results.json").write_text('{"zero-shot": {}, "vision": {}}')
    assert ovml.fit(again, data, "last", default_root_dir=tmp_path, **QUIET) == run
    assert "ovml: stage 'vision' is finished; its results are kept\n" in capsys.readouterr().err
    assert torch.equal(again.eval()(pixels), model(pixels))
    ovml.fit(again, data, run.path, **QUIET)
    assert f"ovml: {run.path}: this run is finished; nothing was trained\n" in capsys.readouterr().err


def test_each_stage_says_what_learns_on_what_for_how_long_and_where(data, tiny, tmp_path, capsys):
    model = OVMultiLabelClassifier(tiny, data.vocabulary, head=QueryHead(), stages=STAGES)
    every = [p for name, p in model.named_parameters() if not name.startswith("teacher.")]
    run = ovml.fit(model, data, default_root_dir=tmp_path, **QUIET)
    lines = capsys.readouterr().err.splitlines()
    tower, total = model.model.image_encoder, sum(p.numel() for p in every)
    parts = *tower.vision_model.encoder.layers[1:], tower.vision_model.post_layernorm, tower.visual_projection
    vision = sum(p.numel() for part in (*parts, model.model.head) for p in part.parameters())
    start = lines.index("ovml: stage 1 of 2: vision")
    learns, *others = lines[start + 1 : start + 5]
    count, names = learns.removeprefix("ovml:   learns ").split(" parameters: ")
    assert count == f"{vision:,} of {total:,}"
    assert set(names.split(", ")) == {
        *("image_encoder.layers.1-2", "image_encoder.post_layernorm", "image_encoder.visual_projection", "head")
    }
    assert others == [
        f"ovml:   on 16 images, {len(data.vocabulary.seen)} labels, and {len(data.vocabulary.unseen)} unseen for "
        "evaluation; cpu",
        "ovml:   for 2 epochs, 4 steps",
        f"ovml:   kept in {run.path}/vision",
    ]
    context = model.model.prompt.context.numel()
    start = lines.index("ovml: stage 2 of 2: prompt")
    assert lines[start + 1] == f"ovml:   learns {context:,} of {total:,} parameters: prompt.context"
    assert lines[start + 3] == "ovml:   for 1 epoch, 2 steps"


def test_a_quiet_fit_prints_nothing(data, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OVML_QUIET", "1")
    model = OVMultiLabelClassifier(tiny, data.vocabulary, stages=STAGES[1:])
    ovml.fit(model, data, default_root_dir=tmp_path, **QUIET)
    assert capsys.readouterr().out == ""


def test_what_lightning_says_of_each_trainer_is_not_repeated(data, tiny, tmp_path):
    lightning = logging.getLogger("lightning.pytorch")
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    level, bars = lightning.level, datasets.utils.logging.is_progress_bar_enabled()
    lightning.addHandler(handler)
    try:
        model = OVMultiLabelClassifier(tiny, data.vocabulary, stages=STAGES[1:])
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            ovml.fit(model, data, default_root_dir=tmp_path, **QUIET)
        assert said == []
        assert not [w for w in warned if "eval mode" in str(w.message)]
        assert (lightning.level, datasets.utils.logging.is_progress_bar_enabled()) == (level, bars)
        pl.Trainer(**QUIET, default_root_dir=tmp_path)  # one's own trainer says what it always says
        assert "GPU available" in said[0]
    finally:
        lightning.removeHandler(handler)


def test_options_and_callbacks_serve_each_stage(data, tiny, tmp_path):
    seen = []

    class Count(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append((pl_module.stage.name, self))

    model = OVMultiLabelClassifier(tiny, data.vocabulary, stages=STAGES)
    ovml.fit(model, data, default_root_dir=tmp_path, callbacks=Count(), fast_dev_run=True, **QUIET)
    assert [name for name, _ in seen] == ["vision", "prompt"]
    assert len({id(callback) for _, callback in seen}) == 2
    assert list(tmp_path.iterdir()) == []


def strategy(**options):
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options).strategy


def test_checkpoints_are_written_beside_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    own = strategy()
    with pytest.raises(FileNotFoundError):
        own.save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")  # as Lightning does it
    write_whole_checkpoints(own)
    for epoch in (1, 2):
        own.save_checkpoint({"epoch": epoch}, tmp_path / "last.ckpt")
        assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"epoch": epoch}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_old_checkpoint_is_whole_until_the_new_one_is(tmp_path, monkeypatch):
    io, path = WholeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)

    def kill(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_a_full_disk_names_the_checkpoint_and_leaves_the_old_one(tmp_path):
    """A limit to the size of files stands for it; torch's own writing would end the process."""
    resource = pytest.importorskip("resource")
    io, path = WholeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"epoch": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as info:
            io.save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert machine_fault(info.value) == f"{path}: File too large; make room, or choose another place"
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_ways_of_writing_that_the_user_chose_stay():
    class Own(TorchCheckpointIO):
        pass

    for plugin in (Own(), AsyncCheckpointIO()):
        chosen = strategy(plugins=[plugin])
        write_whole_checkpoints(chosen)
        assert chosen.checkpoint_io is plugin
