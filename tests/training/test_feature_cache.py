"""Features on disk give what the vision tower gives."""

import json

import pytest
import torch
from commands import SMALL
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from ovml import OVMultiLabelClassifier, PromptStage
from ovml.cli.main import main
from ovml.data import DemoDataModule
from ovml.encoders.image_processor import Preprocessing
from ovml.training.callbacks import FeatureCache
from ovml.utils.errors import UserError

STAGE = "[{class_path: ovml.training.PromptStage, init_args: {epochs: 3}}]"


def fit(config, root, *arguments):
    arguments = ["--model.stages", STAGE, "--data.augment", "false", *SMALL, *arguments]
    assert main(["fit", "--config", config, *arguments, "--trainer.default_root_dir", str(root)]) == 0
    run = root / "version_0"
    weights = torch.load(run / "prompt" / "last.ckpt", weights_only=True)["state_dict"]
    return json.loads((run / "results.json").read_text()), weights


def cached(cache, *arguments):
    callback = [
        "--trainer.callbacks+",
        "ovml.training.callbacks.FeatureCache",
        "--trainer.callbacks.cache_dir",
        str(cache),
    ]
    return [*callback, *arguments]


def runs_of_the_tower(monkeypatch):
    """Counts the pictures that pass through the vision tower."""
    from ovml.encoders import ImageEncoder

    counted = []
    trunk = ImageEncoder.trunk
    monkeypatch.setattr(ImageEncoder, "trunk", lambda self, x, n: counted.append(len(x)) or trunk(self, x, n))
    return counted


def test_the_tower_runs_once_and_nothing_changes(config, tmp_path, monkeypatch):
    plain_results, plain_weights = fit(config, tmp_path / "plain")
    counted = runs_of_the_tower(monkeypatch)
    results, weights = fit(config, tmp_path / "first", *cached(tmp_path / "cache"))
    assert sum(counted) == 12 + 24 + 12, "zero-shot, then each split once"
    counted.clear()
    again, _ = fit(config, tmp_path / "second", *cached(tmp_path / "cache"))
    assert sum(counted) == 12, "zero-shot alone: the features were kept"
    # Batches of another size may change the last digits of float32.
    torch.testing.assert_close(weights, plain_weights, atol=1e-5, rtol=0)
    for row, metrics in plain_results.items():
        assert results[row] == pytest.approx(metrics, abs=1e-4)
        assert again[row] == pytest.approx(results[row], abs=1e-6)


def test_augmented_pictures_are_not_kept_and_half_precision_is_half_the_size(config, tmp_path):
    fit(config, tmp_path / "runs", *cached(tmp_path / "augmented"), "--data.augment", "true")
    assert [folder.name.split("-")[1] for folder in (tmp_path / "augmented").iterdir()] == ["validation"]
    fit(config, tmp_path / "half", *cached(tmp_path / "half-cache", "--trainer.callbacks.dtype", "float16"))
    (whole,) = (tmp_path / "augmented").glob("features-validation*/features-000.npy")
    (half,) = (tmp_path / "half-cache").glob("features-validation*/features-000.npy")
    assert whole.stat().st_size - 128 == 2 * (half.stat().st_size - 128)


def test_stages_that_change_the_tower_are_left_alone(config, tmp_path):
    stage = "[{class_path: ovml.training.VisionStage, init_args: {epochs: 1, warmup_epochs: 0}}]"
    arguments = ["--model.stages", stage, "--data.augment", "false", *SMALL, *cached(tmp_path / "cache")]
    assert main(["fit", "--config", config, *arguments, "--trainer.default_root_dir", str(tmp_path / "runs")]) == 0
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_named_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("ovml.data.features.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    data, model, trainer = parts(tiny, tmp_path)
    with pytest.raises(UserError, match=r"features: image features take 0.0 GiB, 0.0 GiB are free"):
        trainer.fit(model, datamodule=data)
    assert not list((tmp_path / "features").rglob("*.npy"))


class Stops(Callback):
    """Raises an error in the first training step."""

    def on_train_batch_start(self, *_):
        raise RuntimeError("stopped")


def parts(tiny, tmp_path, *callbacks):
    data = DemoDataModule(4, 4, cache_dir=str(tmp_path / "cache"), clip=tiny, batch_size=2, augment=False)
    model = OVMultiLabelClassifier(tiny, data.vocabulary, stages=[PromptStage(epochs=1, warmup_epochs=0)])
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FeatureCache(str(tmp_path / "features")), *callbacks],
    )
    return data, model, trainer


def test_images_are_read_again_after_an_error(tiny, tmp_path):
    data, model, trainer = parts(tiny, tmp_path, Stops())
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(model, datamodule=data)
    assert list((tmp_path / "features").iterdir())
    assert "pixel_values" in next(iter(data.train_dataloader()))


def test_data_loaders_without_a_data_module_are_refused_in_one_line(tiny, tmp_path):
    data, model, trainer = parts(tiny, tmp_path)
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(UserError, match=r"^FeatureCache: needs a data module of ovml.*remove the callback$"):
        trainer.fit(model, *loaders)


def test_features_of_other_settings_are_others(tiny, tmp_path):
    """Each thing that features depend on: with another one they are computed anew, with the same they are found."""

    def kept(size=4, scene_seed=0, precision="32-true", dtype="float32", mean=None, factor=1.0):
        data = DemoDataModule(size, size, scene_seed, str(tmp_path / "data"), tiny, batch_size=4, augment=False)
        preprocessing = Preprocessing(mean=mean)
        model = OVMultiLabelClassifier(tiny, data.vocabulary, stages=[PromptStage(1)], preprocessing=preprocessing)
        with torch.no_grad():
            model.model.image_encoder.visual_projection.weight.mul_(factor)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
        callbacks = [FeatureCache(str(tmp_path / "cache"), dtype)]
        Trainer(max_epochs=1, precision=precision, callbacks=callbacks, num_sanity_val_steps=0, **quiet).fit(
            model, data
        )
        return {path.name for path in (tmp_path / "cache").iterdir()}

    found = kept()
    assert sorted(name.split("-")[1] for name in found) == ["train", "validation"]
    assert kept() == found
    for other in ({"size": 5}, {"scene_seed": 1}, {"precision": "bf16-mixed"}, {"dtype": "float16"},
                  {"mean": (0.1, 0.2, 0.3)}, {"factor": 1.1}):  # fmt: skip
        more = kept(**other)
        assert len(more - found) == 2, other
        assert kept(**other) == more
        found = more
