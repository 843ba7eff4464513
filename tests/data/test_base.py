import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from ovml import OVMultiLabelClassifier
from ovml.data import DemoDataModule, MultiLabelDataModule, RandAugment
from ovml.data.rows import RowReader
from ovml.encoders.checkpoints import load_image_processor
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary


class Spots(MultiLabelDataModule):
    """Three grey pictures; label i is present in picture i, label 0 is marked absent in picture 2."""

    exhaustive = False

    @property
    def vocabulary(self):
        return LabelVocabulary(("a", "b"), ("c",))

    def dataset(self, split):
        rows = {
            "image": [Image.new("RGB", (40, 30), (40 * i,) * 3) for i in range(3)],
            "positive": [[0], [1], [2]],
            "negative": [[], [], [0]],
            "image_id": ["x", "y", "z"],
        }
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "positive": datasets.List(datasets.Value("int32")),
                "negative": datasets.List(datasets.Value("int32")),
                "image_id": datasets.Value("string"),
            }
        )
        return datasets.Dataset.from_dict(rows, features=features)


def test_batches_have_the_promised_form(tiny):
    (batch,) = Spots(clip=tiny, batch_size=8).val_dataloader()
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].dtype == torch.int8
    assert batch["labels"].tolist() == [[1, -1, -1], [-1, 1, -1], [0, -1, 1]]
    assert batch["image_id"] == ["x", "y", "z"]


def test_labels_not_listed_are_absent_where_annotation_is_exhaustive(tiny):
    reader = RowReader(load_image_processor(tiny), 4, exhaustive=True)
    assert reader.targets([1, 1], []).tolist() == [0, 1, 0, 0]


def test_images_are_prepared_as_the_checkpoint_or_the_trainers_model_says(tiny):
    own = load_image_processor(tiny)
    data = Spots(clip=tiny)
    assert data.image_processor == own
    imagenet = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    model = OVMultiLabelClassifier(tiny, ["a", "b"], preprocessing=imagenet)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    data.trainer = trainer
    assert data.image_processor == replace(own, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert data.train_transform.processor is data.image_processor is model.model.image_processor
    assert data.eval_transform == model.model.image_processor.pixels


def test_pictures_are_resized_before_the_cut_as_asked_or_as_the_checkpoint_says(tiny, tmp_path):
    own = load_image_processor(tiny)
    assert Preprocessing(resize=60).of(own).resize == 60
    assert Preprocessing(resize=60).of(own)(Image.new("RGB", (100, 200))).shape == (3, 48, 48)
    shutil.copytree(tiny, tmp_path / "clip")
    file = tmp_path / "clip" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": {"shortest_edge": 55}}))
    other = load_image_processor(str(tmp_path / "clip"))
    assert [Preprocessing(resize=r).of(other).resize for r in (None, 48, 60)] == [55, None, 60]
    with pytest.raises(UserError, match=r"model.preprocessing.resize 40: the checkpoint crops 48 pixels; leave it out"):
        Preprocessing(resize=40).of(own)
    with pytest.raises(UserError, match=r"image processor: std must be above 0; got \(0.5, 0.0, 0.5\)"):
        Preprocessing(std=(0.5, 0.0, 0.5)).of(own)


def test_order_depends_on_seed_and_epoch_alone(tiny):
    def order(seed, epoch):
        loader = Spots(clip=tiny, batch_size=1, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [batch["image_id"][0] for batch in loader]

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == ["x", "y", "z"]
    assert len({tuple(order(0, epoch)) for epoch in range(8)}) > 1
    assert len({tuple(order(seed, 1)) for seed in range(8)}) > 1


def test_augmentation_depends_on_seed_epoch_and_row_alone(tiny, tmp_path):
    """Not on the number of workers, the global generator or what was read before."""

    def pixels(workers=0, epoch=1, seed=0):
        data = DemoDataModule(4, 4, cache_dir=str(tmp_path), clip=tiny, batch_size=3, num_workers=workers, seed=seed)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        rows = {i: p for batch in loader for i, p in zip(batch["image_id"], batch["pixel_values"], strict=True)}
        return torch.stack([rows[i] for i in sorted(rows)])

    first = pixels()
    state = torch.random.get_rng_state()
    torch.rand(7)
    assert torch.equal(pixels(), first)
    torch.random.set_rng_state(state)
    assert torch.equal(pixels(workers=2), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(pixels(epoch=2), first)
    assert not torch.equal(pixels(seed=1), first)


def test_the_seed_is_that_of_the_run_unless_it_is_given(tiny, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert Spots(clip=tiny).seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert Spots(clip=tiny).seed == 7
    assert Spots(clip=tiny, seed=3).seed == 3


def test_settings_of_the_training_crops_are_handed_on(tiny):
    operations = RandAugment()
    given = {"rand_augment": operations, "flip": 0.3, "cutout": 0.5}
    transform = Spots(clip=tiny, crop_scale=(0.5, 0.6), **given).train_transform
    assert transform.scale == (0.5, 0.6)
    assert {name: getattr(transform, name) for name in given} == given
    assert Spots(clip=tiny, crop_scale=None).train_transform.scale is None
    plain = Spots(clip=tiny, augment=False)
    assert plain.train_transform == plain.eval_transform


def test_images_of_an_evaluation_are_not_augmented(tiny, tmp_path):
    data = DemoDataModule(3, 3, cache_dir=str(tmp_path), clip=tiny, batch_size=3)
    for split, loader in (("validation", data.val_dataloader()), ("test", data.test_dataloader())):
        (batch,) = loader
        expected = [data.image_processor.pixels(row["image"].convert("RGB")) for row in data.dataset(split)]
        assert torch.equal(batch["pixel_values"], torch.stack(expected))
    (batch,) = data.train_dataloader()
    rows = {row["image_id"]: row["image"].convert("RGB") for row in data.dataset("train")}
    for image_id, pixels in zip(batch["image_id"], batch["pixel_values"], strict=True):
        values = data.image_processor.normalize_pixels(pixels)
        assert not torch.allclose(values, data.image_processor(rows[image_id]), atol=0.1)


def test_each_split_has_its_batch_size(tiny):
    data = Spots(clip=tiny, batch_size=2, eval_batch_size=3)
    assert [len(batch["image_id"]) for batch in data.train_dataloader()] == [2, 1]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        (batch,) = loader
        assert batch["image_id"] == ["x", "y", "z"]
        expected = [data.image_processor.pixels(Image.new("RGB", (40, 30), (40 * i,) * 3)) for i in range(3)]
        assert torch.equal(batch["pixel_values"], torch.stack(expected))
    assert Spots(clip=tiny, batch_size=2).val_dataloader().batch_size == 2
    loaders = [getattr(Spots(clip=tiny, num_workers=2), f"{name}_dataloader")() for name in ("train", "val", "test")]
    assert [loader.num_workers for loader in loaders] == [2, 2, 2]


@pytest.mark.parametrize("world", [2, 3])
def test_every_process_reads_its_share_only(tiny, world):
    data = Spots(clip=tiny, batch_size=1)
    shares = {"train": [], "validation": []}
    for rank in range(world):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, lightning_module=None, training=False)
        for split, loader in (("train", data.train_dataloader()), ("validation", data.val_dataloader())):
            shares[split].append([i for batch in loader for i in batch["image_id"]])
    assert sorted(i for share in shares["validation"] for i in share) == ["x", "y", "z"]
    assert {len(share) for share in shares["train"]} == {-(-3 // world)}
    assert {i for share in shares["train"] for i in share} == {"x", "y", "z"}


def test_demo_rows_become_batches(tiny, tmp_path):
    data = DemoDataModule(train_size=6, eval_size=4, cache_dir=str(tmp_path), clip=tiny, batch_size=3)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert batch["labels"].shape == (3, len(data.vocabulary))
    assert (batch["labels"] == 1).any(dim=1).all()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_is_checked(tiny, batch_size):
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        Spots(clip=tiny, batch_size=batch_size)
