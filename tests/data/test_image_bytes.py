"""Images travel as bytes, and the model normalizes them: equal to the last bit to images that are normalized before."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from ovml import LabelVocabulary, OpenVocabularyModel, OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.data import Augmentation, DemoDataModule, RAMAugmentation
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor, Preprocessing

VOCABULARY = LabelVocabulary(("cat", "dog", "red car"), ("black cat", "sea"))
PROCESSORS = [
    ImageProcessor(32),
    ImageProcessor(32, IMAGENET_MEAN, IMAGENET_STD),
    ImageProcessor(32, (0.5,) * 3, (0.5,) * 3, squash=True),
]
QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)


def images(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, 3, 48, 48), dtype=torch.uint8, generator=generator)


def rows(pixels):
    labels = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, -1], [0, 1, 1, 0, 1]], dtype=torch.int8).repeat(2, 1)
    return [{"pixel_values": x, "labels": y, "image_id": str(i)} for i, (x, y) in enumerate(zip(pixels, labels))]  # noqa: B905


def classifier(tiny, **options):
    torch.manual_seed(0)
    stages = [VisionStage(epochs=1, warmup_epochs=0, num_layers=1), PromptStage(epochs=1)]
    return OVMultiLabelClassifier(tiny, VOCABULARY, stages=stages, ks=[1], **options)


@pytest.mark.parametrize("processor", PROCESSORS, ids=["clip", "imagenet", "siglip"])
def test_a_batch_is_normalized_as_each_image_alone(processor):
    pixels = images()
    alone = torch.stack([processor.normalize_pixels(x) for x in pixels])
    assert torch.equal(processor.normalize_pixels(pixels), alone)
    plain = (pixels.double() / 255 - torch.tensor(processor.mean).view(3, 1, 1)) / torch.tensor(processor.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(alone.double(), plain, atol=2e-6, rtol=0)
    assert pixels.dtype == torch.uint8


@pytest.mark.parametrize("mean", [IMAGENET_MEAN, (0.5,) * 3])
def test_a_model_takes_bytes_and_normalized_floats_alike(tiny, mean):
    model = OpenVocabularyModel(tiny, VOCABULARY, preprocessing=Preprocessing(mean=mean)).eval()
    assert model.image_processor.mean == mean
    floats = model.image_processor.normalize_pixels(images())
    with torch.inference_mode():
        assert torch.equal(model(images()), model(floats))
        assert torch.equal(model.normalized(floats), floats)
    assert torch.equal(model(images()), model(floats))  # what was kept in inference mode serves outside of it


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("stage", ["vision", "prompt"])
def test_training_evaluation_and_prediction_give_the_tower_the_same_pixels(tiny, stage, precision):
    found, results = [], []
    for is_normalized in (False, True):
        model = classifier(tiny, preprocessing=Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD))
        model.start_stage(stage)
        seen = []
        embeddings = model.model.image_encoder.vision_model.embeddings
        embeddings.register_forward_pre_hook(
            lambda module, args, seen=seen: seen.append(args[0].to(module.patch_embedding.weight.dtype))
        )
        normalize = model.model.image_processor.normalize_pixels if is_normalized else (lambda pixels: pixels)
        loader = DataLoader(rows(normalize(images())), batch_size=3)
        trainer = Trainer(max_epochs=1, accelerator="cpu", precision=precision, num_sanity_val_steps=0, **QUIET)
        trainer.fit(model, loader, loader)
        results.append(float(trainer.callback_metrics["train/loss"]))
        trainer.predict(model, loader)
        found.append(seen)
    assert len(found[0]) == len(found[1]) == 6
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert results[0] == pytest.approx(results[1], rel=1e-2)


def test_a_batch_is_a_quarter_of_the_size_of_floats_and_stacked_once(tiny, tmp_path, monkeypatch):
    data = DemoDataModule(8, 4, cache_dir=str(tmp_path), clip=tiny, batch_size=8)
    (train, evaluation), stack, stacked = (data.train_dataloader(), data.val_dataloader()), torch.stack, []
    monkeypatch.setattr(torch, "stack", lambda tensors, *args: stacked.append(len(tensors)) or stack(tensors, *args))
    for loader, size in ((train, 8), (evaluation, 4)):
        (batch,) = loader
        assert stacked == [size, size]  # of images and of labels
        assert batch["pixel_values"].nbytes == size * 3 * 48 * 48
        assert batch["labels"].nbytes == size * len(data.vocabulary)
        stacked.clear()


def test_noise_that_no_byte_holds_travels_as_normalized_floats(tiny, tmp_path):
    data = DemoDataModule(8, 4, cache_dir=str(tmp_path), clip=tiny, batch_size=8, augmentation=RAMAugmentation())
    (batch,) = data.train_dataloader()
    assert batch["pixel_values"].dtype == torch.float32
    largest = float((1 - min(data.image_processor.mean)) / min(data.image_processor.std))
    assert float(batch["pixel_values"].max()) > largest  # Gaussian noise in half of the images
    (batch,) = data.val_dataloader()
    assert batch["pixel_values"].dtype == torch.uint8


class Undecided(Augmentation):
    """Gives normalized floats for bright images, and bytes for dark ones."""

    def __call__(self, image, processor):
        return processor(image) if image.getpixel((0, 0))[0] > 127 else processor.pixels(image)


def test_an_augmentation_that_mixes_bytes_and_floats_is_an_error(tiny, tmp_path):
    data = DemoDataModule(32, 4, cache_dir=str(tmp_path), clip=tiny, batch_size=32, augmentation=Undecided())
    with pytest.raises(UserError, match=r"data\.augmentation: gives bytes for some images and floats for others"):
        next(iter(data.train_dataloader()))
