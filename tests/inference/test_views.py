"""ITACLIP's image engineering, against the published code's numbers and its own definition."""

import pytest
import torch
from conftest import reference_numbers
from reference_clip import reference_tokenizer
from scipy import ndimage
from torch.nn import functional as F
from training_free import pixels, reference_clip

from ovml import OpenVocabularyModel, UserError
from ovml.encoders.adapters import RAMLadder
from ovml.encoders.sources import ITACLIP, SCLIP
from ovml.heads import PatchSoftmaxHead, RAMHead
from ovml.inference.views import AveragedViews, blurred, grey
from ovml.prompts import TemplatePrompt


def test_patches_are_itaclip_s():
    golden = reference_numbers("training_free_golden.safetensors")
    model = OpenVocabularyModel(
        reference_clip(golden), tokenizer=reference_tokenizer(), prompt=TemplatePrompt("{}"), patch_source=ITACLIP()
    ).eval()
    features = AveragedViews(model).encode_images(pixels(golden["images"][24:]))
    labels = F.normalize(golden["text.ensemble80"], dim=-1)
    logits = (features.patch_embeds @ labels.T).transpose(1, 2).unflatten(-1, (14, 14))
    expected = golden["itaclip.engineered"]
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5
    assert torch.allclose(features.global_embeds, golden["global"][24:], atol=1e-4)


def pixel_values(model):
    side = model.image_encoder.image_size
    return torch.randn(2, 3, side, side, generator=torch.manual_seed(0))


def scores(model, values, labels):
    return F.normalize(model.encode_images(values).patch_embeds, dim=-1) @ F.normalize(labels, dim=-1).T


@torch.no_grad()
def test_the_mean_of_views_scores_the_mean_of_their_cosines(tiny):
    model = OpenVocabularyModel(tiny, ["cat", "dog"], patch_source=SCLIP()).eval()
    values = pixel_values(model)
    labels, side = model.embed_labels(), round(model.image_encoder.num_patches**0.5)
    expected = 0.7 / 3 * sum(scores(model, view, labels) for view in (values, grey(values), blurred(values)))
    for axis in (2, 3):
        flipped = scores(model, values.flip(axis), labels).unflatten(1, (side, side)).flip(axis - 1)
        expected = expected + 0.15 * flipped.flatten(1, 2)
    found = AveragedViews(model, share=0.7).encode_images(values)
    assert torch.allclose(found.patch_embeds @ F.normalize(labels, dim=-1).T, expected, atol=1e-5)
    assert torch.allclose(found.global_embeds, model.encode_images(values).global_embeds, atol=1e-5)


@torch.no_grad()
def test_a_head_reads_the_averaged_patches(tiny):
    model = OpenVocabularyModel(tiny, ["cat", "dog"], head=PatchSoftmaxHead(30, ["sky"])).eval()
    values = pixel_values(model)
    views = AveragedViews(model)
    expected = model.score(views.encode_images(values), model.embed_labels(["bee", "owl"]))
    assert views(values, ["bee", "owl"]).equal(expected)
    assert not torch.allclose(expected, model(values, ["bee", "owl"]))


def test_the_blur_is_scipy_s():
    image = torch.randn(1, 3, 20, 24, dtype=torch.float64)
    expected = [ndimage.gaussian_filter(channel.numpy(), 5, mode="mirror", radius=5) for channel in image[0]]
    assert torch.allclose(blurred(image)[0], torch.stack([torch.from_numpy(channel) for channel in expected]))


def test_grey_has_equal_channels():
    image = torch.rand(2, 3, 4, 4)
    assert grey(image)[:, 0].equal(grey(image)[:, 2])
    assert torch.allclose(
        grey(image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)), image.mean(dim=1, keepdim=True), atol=1e-3
    )


def test_models_without_patches_of_their_own_are_refused(tiny):
    with pytest.raises(UserError, match="share must be from 0 to 1"):
        AveragedViews(OpenVocabularyModel(tiny), share=1.5)
    model = OpenVocabularyModel(tiny, ["cat"], head=RAMHead(), adapters=[RAMLadder(num_layers=2)]).eval()
    with pytest.raises(UserError, match="patches of this model depend on the labels"):
        AveragedViews(model).encode_images(
            torch.zeros(1, 3, model.image_encoder.image_size, model.image_encoder.image_size)
        )


def test_bytes_are_normalized_first():
    model = OpenVocabularyModel("ovml-demo", ["cat", "dog"]).eval()
    side = model.image_processor.size
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    assert torch.equal(AveragedViews(model)(pixels), AveragedViews(model)(model.normalized(pixels)))
    with pytest.raises(UserError, match="pixel_values: are bytes; normalize them"):
        model.image_encoder(pixels)
