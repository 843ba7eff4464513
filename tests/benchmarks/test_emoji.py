"""The emoji world as a data module, on the command line, and its CLIP; on drawn pictures and made-up names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_emoji
import numpy as np
import pytest
import torch
from PIL import Image
from worlds.emoji import EmojiDataModule

from ovml.cli.main import main
from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "benchmarks" / "worlds" / "emoji.yaml")


@pytest.fixture
def pictures(tmp_path):
    return str(fake_emoji.write(tmp_path / "pictures"))


@pytest.fixture
def stand_in(monkeypatch):
    fake_emoji.install(monkeypatch)


def module(pictures, tmp_path, tiny, **changed):
    arguments = {"train_size": 10, "eval_size": 6, "batch_size": 5, "cache_dir": str(tmp_path), "clip": tiny}
    return EmojiDataModule(pictures, **{**arguments, **changed})


def test_batches(pictures, tmp_path, tiny, stand_in):
    data = module(pictures, tmp_path, tiny)
    batch = next(iter(data.val_dataloader()))
    assert batch["pixel_values"].shape == (5, 3, 48, 48)
    assert batch["labels"].shape == (5, len(fake_emoji.NAMES))
    assert batch["labels"].dtype == torch.int8
    world = data.world("validation")
    for i, row in enumerate(batch["labels"]):
        assert row.nonzero()[:, 0].tolist() == world.scene("validation", i).label_ids
    assert set(data.vocabulary.names) == set(fake_emoji.NAMES)
    assert len(list(data.train_dataloader())) == 2


def test_test_scenes_change_their_style_alone(pictures, tmp_path, tiny, stand_in):
    other = str(fake_emoji.write(tmp_path / "round", shape="ellipse"))
    plain, styled = (module(pictures, tmp_path, tiny, test_pictures=style) for style in (None, other))
    for split in ("train", "validation"):
        assert plain.dataset(split)[0]["image"].tobytes() == styled.dataset(split)[0]["image"].tobytes()
    first, second = plain.dataset("test"), styled.dataset("test")
    assert first["positive"][:] == second["positive"][:]
    assert first[0]["image"].tobytes() != second[0]["image"].tobytes()


def test_fewer_names(pictures, tmp_path, tiny, stand_in):
    data = module(pictures, tmp_path, tiny, num_names=12)
    assert len(data.vocabulary) == 12
    assert max(max(ids) for ids in data.dataset("train")["positive"]) < 12


def test_training_crops_are_not_mirrored(pictures, tmp_path, tiny, stand_in):
    halves = np.zeros((72, 72, 3), dtype=np.uint8)
    halves[:, 36:] = 255
    transform = module(pictures, tmp_path, tiny, crop_scale=(0.9, 1.0)).train_transform
    for _ in range(10):
        left, right = transform(Image.fromarray(halves)).float().mean((0, 1))[[0, -1]]
        assert left < right
    plain = module(pictures, tmp_path, tiny, augment=False)
    assert plain.train_transform == plain.eval_transform


@pytest.mark.parametrize("name", ["train_size", "eval_size"])
def test_an_empty_split_is_named(name):
    with pytest.raises(UserError, match=f"data.{name} must be at least 1; got 0"):
        EmojiDataModule(**{name: 0})


def test_the_recipe_fits_and_tests(pictures, tmp_path, stand_in, capsys):
    small = ["--data.font", pictures, "--data.cache_dir", str(tmp_path / "cache"), "--data.train_size", "16"]
    small += ["--data.eval_size", "12", "--data.batch_size", "8", "--model.clip", "ovml-demo", "--model.ks", "[1, 2]"]
    small += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    small += ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "--config", RECIPE, *small]) == 0
    run = tmp_path / "runs" / "version_0"
    rows = json.loads((run / "results.json").read_text())
    assert set(rows) == {"zero-shot", "vision", "prompt"}
    assert {"zsl/mAP", "gzsl/mAP"} <= set(rows["prompt"])
    style = ["--data.test_pictures", str(fake_emoji.write(tmp_path / "round", shape="ellipse"))]
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert main(["test", "--ckpt_path", str(run), *style, *quiet]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run), "--data.test_pictures", str(tmp_path / "nowhere"), *quiet]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "nowhere: no such font or folder of emoji pictures" in line


def test_its_clip_is_made_by_one_command(pictures, tmp_path):
    (tmp_path / "emoji.py").write_text(fake_emoji.MODULE)
    out = tmp_path / "clip"
    sizes = ["--steps", "3", "--scenes", "16", "--batch-size", "4", "--eval-scenes", "8", "--eval-every", "3"]
    places = ["--font", pictures, "--cache-dir", str(tmp_path / "cache"), "--out", str(out)]
    places_of_code = (tmp_path, ROOT / "benchmarks", ROOT / "examples", os.environ.get("PYTHONPATH", ""))
    path = os.pathsep.join(map(str, places_of_code))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "worlds.emoji.pretrain_clip", *sizes, *places]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "26 names" in done.stdout
    embeds = TextEncoder(load_clip(str(out)), load_tokenizer(str(out)))(["zebra", "a photo of a left arrow", "piñata"])
    assert embeds.shape == (3, 128)
    assert "its vision tower from\nthat of `ovml-demo`" in (out / "README.md").read_text()
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0
    assert "exists" in " ".join(again.stdout.split())
    assert (out / "model.safetensors").stat().st_mtime_ns == before
