"""A small CLIP is trained on photographs and captions: resumable, in chunks, and saved as any CLIP is."""

import random

import fake_photos
import pretrain_demo_clip as demo
import pytest
import torch
from worlds.photos import pretrain_clip as module
from worlds.photos.photographs import captions_of, load_photographs, some_words

from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import load_clip, load_image_processor, load_tokenizer
from ovml.utils.errors import UserError


@pytest.fixture
def data(tmp_path):
    return str(fake_photos.write(tmp_path / "photos"))


@pytest.fixture
def arguments(data, tmp_path):
    def parse(*more, out="clip"):
        places = ["--data", data, "--out", str(tmp_path / out), "--cache-dir", str(tmp_path / "cache")]
        sizes = ["--epochs", "2", "--batch-size", "6", "--eval-every", "2", "--device", "cpu"]
        return module.parser().parse_args([*places, *sizes, *more])

    return parse


def test_the_folder_is_a_clip_with_tokenizer_and_image_processor(arguments, tmp_path):
    args = arguments("--epochs", "1")
    module.train(args)
    clip = load_clip(str(args.out))
    assert clip.config.vision_config.image_size == 96
    assert load_image_processor(str(args.out)).size == 96
    assert TextEncoder(clip, load_tokenizer(str(args.out)))(["a dog", "a zebra on a lake"]).shape == (2, module.WIDTH)
    card = (args.out / "README.md").read_text()
    assert "| epochs done | 1 |" in card
    assert "validation photographs | captions R@1" in card
    assert not (tmp_path / "clip.state").exists()


def test_an_interrupted_training_goes_on_with_the_same_numbers(arguments, tmp_path, monkeypatch):
    whole, broken = arguments(out="whole"), arguments(out="broken")
    module.train(whole)
    keep = module.save_state

    def interrupt(training, file):
        keep(training, file)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            module.train(broken)
    assert not broken.out.exists()
    other = arguments("--lr", "0.1", out="broken")
    with pytest.raises(UserError, match=r"of a training with lr 0\.001; give the same"):
        module.train(other)
    module.train(broken)
    expected, found = (load_clip(str(args.out)).state_dict() for args in (whole, broken))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_gradients_in_chunks_are_those_of_the_whole_batch(arguments, data):
    rows = load_photographs(data).splits["train"]
    captions = captions_of(rows, data)
    pixels = torch.randint(0, 256, (12, 128, 128, 3), dtype=torch.uint8).numpy()
    photographs = module.Photographs(pixels, captions)
    found = []
    for chunks in ("1", "3"):
        args = arguments("--chunks", chunks)
        training = module.Training(args, photographs, demo.build_tokenizer(some_words(captions)))
        training.half = False
        loss = training.backward(training.batch(torch.arange(7), random.Random(0), torch.Generator().manual_seed(0)))
        found.append((loss, [parameter.grad for parameter in training.model.parameters()]))
    (loss, gradients), (same, others) = found
    assert loss == pytest.approx(same, rel=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3)


def test_without_smoothing_the_loss_is_the_mean_over_the_captions_of_a_photograph():
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (3, 6))
    scale = torch.tensor(1.5)
    logits = scale.exp() * images @ texts.T
    of_images = [-logits.log_softmax(1)[i, 2 * i : 2 * i + 2].mean() for i in range(3)]
    of_texts = [-logits.T.log_softmax(1)[j, j // 2] for j in range(6)]
    expected = (sum(of_images) / 3 + sum(of_texts) / 6) / 2
    assert module.contrast(images, texts, scale, 0.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_crops_of_plain_photographs_are_plain():
    pixels = torch.full((4, 128, 128, 3), 100, dtype=torch.uint8)
    parts = module.crops(pixels, torch.Generator().manual_seed(0))
    assert parts.shape == (4, 3, 96, 96)
    assert (parts.amax((1, 2, 3)) - parts.amin((1, 2, 3))).max() < 1e-5
    assert len(parts[:, 0, 0, 0].unique()) == 4  # each in its own light


def test_altered_captions_are_neighbouring_words_of_the_caption():
    caption, rng = "A brown dog runs through the grass .", random.Random(0)
    texts = {module.altered(caption, rng) for _ in range(200)}
    assert "a brown dog runs through the grass" in texts
    starts = [template.partition("{}")[0] for template in module.TEMPLATES if template.partition("{}")[0]]
    for text in texts:
        core = next((text.removeprefix(start) for start in starts if text.startswith(start)), text)
        assert core.removesuffix(" in the scene") in "a brown dog runs through the grass"
    assert any(text.startswith("a photo of ") for text in texts)
    assert "brown dog" in texts or "dog runs" in texts


def test_what_lacks_captions_is_named(tmp_path):
    folder = fake_photos.write(tmp_path / "photos")
    import pandas as pd

    for file in folder.glob("*.parquet"):
        pd.read_parquet(file).drop(columns="captions").to_parquet(file)
    with pytest.raises(UserError, match="has no column of captions, only image, image_id"):
        load_photographs(str(folder))
