"""TagCLIP's second pass, against the published code's numbers, and in whole models."""

import pytest
import torch
from conftest import reference_numbers
from PIL import Image
from reference_clip import reference_tokenizer
from torch.nn import functional as F
from training_free import pixels, reference_clip

from ovml import OpenVocabularyModel, UserError
from ovml.encoders.adapters import Ladder, LoRA
from ovml.encoders.sources import SCLIP
from ovml.heads import CosineHead, PatchSoftmaxHead
from ovml.inference.second_pass import SecondPass
from ovml.inference.whole_image import WholeImage
from ovml.prompts import TemplatePrompt
from ovml.prompts.texts import packaged_background

LABELS = ["cat", "dog", "bee"]
STUFF = {"threshold": 0.1, "blocks": range(1, 12)}


@pytest.fixture(scope="module")
def reference():
    """The published numbers, and a model of their CLIP."""
    golden = reference_numbers("training_free_golden.safetensors")
    tokenizer, prompt = reference_tokenizer(), TemplatePrompt("{}")
    return golden, OpenVocabularyModel(reference_clip(golden), tokenizer=tokenizer, prompt=prompt).eval()


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("options", "part", "numbers"), [({}, "", range(4)), (STUFF, "stuff.", (0, 3))])
def test_scores_are_tagclip_s(options, part, numbers, reference):
    golden, model = reference
    second = SecondPass(model, background=(), **options)
    names = golden["text.ensemble85"]
    for i in numbers:
        image = pixels(golden["image_wide"] if i == 3 else golden["images"][24 + i])[None]
        first = second.encode_images(image)
        maps = second.maps(first, F.normalize(names, dim=-1))
        assert distance(maps[0], golden[f"tagclip.{i}.{part}refined"]) < 3e-5
        best = maps[0, :, :9].amax(dim=0)
        assert distance(best, golden[f"tagclip.{i}.{part}max"]) < 3e-5
        if not part:
            assert second.find_regions(first, maps, best[None]).marked.equal(golden[f"tagclip.{i}.crop_masks"])
        assert distance(second.score_names(first, names, 9)[0], golden[f"tagclip.{i}.{part}final"]) < 3e-5


def test_images_of_a_batch_do_not_mix(reference):
    golden, model = reference
    second = SecondPass(model, background=())
    names = golden["text.ensemble85"]
    found = second.score_names(second.encode_images(pixels(golden["images"][24:])), names, 9)
    assert second.images == 3
    assert second.regions == sum(len(golden[f"tagclip.{i}.crop_masks"]) for i in range(3))
    assert second.passes == pytest.approx(1 + second.regions / 3)
    for i in range(3):
        assert distance(found[i], golden[f"tagclip.{i}.final"]) < 3e-5


# ------------------------------------------------------------------------------------------------ whole models


def picture(seed=0, size=(48, 48)):
    noise = torch.rand(3, 6, 6, generator=torch.manual_seed(seed))
    return Image.fromarray((255 * noise).byte().permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)


def pixel_values(model, number=4):
    return torch.stack([model.image_processor(picture(seed)) for seed in range(number)])


@torch.no_grad()
def test_the_first_pass_is_the_model_s_own(tiny):
    for source in (None, SCLIP()):
        model = OpenVocabularyModel(tiny, LABELS, patch_source=source).eval()
        found, expected = SecondPass(model).encode_images(pixel_values(model)).features, None
        expected = model.encode_images(pixel_values(model))
        assert torch.allclose(found.global_embeds, expected.global_embeds, atol=1e-5)
        assert torch.allclose(found.patch_embeds, expected.patch_embeds, atol=1e-5)


def test_labels_that_do_not_pass_keep_their_first_score(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    values = pixel_values(model)
    none = SecondPass(model, threshold=1, background=())
    first = none.encode_images(values)
    maps = none.maps(first, F.normalize(model.embed_labels(), dim=-1))
    assert torch.allclose(none(values), maps.amax(dim=1))
    assert (none.images, none.regions, none.passes) == (4, 0, 1)
    some = SecondPass(model, threshold=0.3, background=())
    changed = (some(values) - none(values)).abs() > 1e-6
    assert changed.any()
    assert changed.sum() <= some.regions


def test_another_head_scores_first(tiny):
    head = PatchSoftmaxHead(30, ["sky"])
    model = OpenVocabularyModel(tiny, LABELS, head=head, patch_source=SCLIP()).eval()
    values = pixel_values(model)
    second = SecondPass(model, threshold=0.3, background=("sky",), first="head")
    first = second.encode_images(values)
    expected = model(values)
    names = F.normalize(model.with_background(model.embed_labels()), dim=-1)
    maps = second.maps(first, names)
    regions = second.find_regions(first, maps, maps[..., :3].amax(dim=1))
    with torch.no_grad():
        for image, label, pixels, marked in zip(*regions, strict=True):
            token = F.normalize(second._class_tokens(pixels[None], marked[None]), dim=-1)
            share = (model.logit_scale.exp() * token @ names.T).softmax(dim=-1)[0, label]
            expected[image, label] = (expected[image, label] + share) / 2
    assert len(regions.images)
    assert torch.allclose(second(values), expected, atol=1e-5)


def test_a_head_that_gives_no_shares_is_refused(tiny):
    model = OpenVocabularyModel(tiny, ["cat", "dog"], head=CosineHead()).eval()
    model.head.forward = lambda features, label_embeds: -torch.ones(len(features.global_embeds), len(label_embeds))
    with pytest.raises(UserError, match=r"first='head' takes scores from 0 to 1, .* CosineHead gives others"):
        SecondPass(model, first="head")(pixel_values(model, 1))


@torch.no_grad()
def test_the_class_token_sees_marked_patches_alone(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    second, values = SecondPass(model), pixel_values(model, 1)
    patches = model.image_encoder.num_patches
    everything = second._class_tokens(values, torch.ones(1, patches, dtype=torch.bool))
    assert torch.allclose(everything, model.encode_images(values).global_embeds, atol=1e-5)
    nothing = torch.zeros(1, patches, dtype=torch.bool)
    assert torch.allclose(second._class_tokens(values, nothing), second._class_tokens(-values, nothing), atol=1e-5)
    assert not torch.allclose(everything, second._class_tokens(values, nothing), atol=1e-3)


def test_packaged_background_leaves_labels_out(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    values = pixel_values(model)
    with_label = SecondPass(model)(values, [*LABELS, "sky"])
    others = [name for name in packaged_background() if name != "sky"]
    assert torch.allclose(SecondPass(model, background=others)(values, [*LABELS, "sky"]), with_label, atol=1e-6)
    with pytest.raises(UserError, match="background: 'sky' is one of the labels; leave it out"):
        SecondPass(model, background=["wall", "sky"])(values, [*LABELS, "sky"])


def test_tags_are_relative_to_the_image_s_scores(tiny):
    second = SecondPass(OpenVocabularyModel(tiny, LABELS))
    scores = torch.tensor([[0.1, 0.9, 0.6], [0.5, 0.5, 0.5], [0.0, 1.0, 0.4]])
    assert second.tags(scores).tolist() == [[False, True, True], [True, True, True], [False, True, False]]


@torch.no_grad()
def test_images_of_any_size(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    second = SecondPass(model)
    values = second.transform(picture(size=(83, 49)))
    rows, columns = -(-49 // second.patch_size), -(-83 // second.patch_size)
    assert values.shape == (3, rows * second.patch_size, columns * second.patch_size)
    assert second.encode_images(values[None]).grid == (rows, columns)
    assert second(values[None]).isfinite().all()
    with pytest.raises(UserError, match="images of 13 x 16 pixels: sides must be multiples of"):
        second(torch.zeros(1, 3, 13, 16))


@pytest.mark.parametrize("size", [(4000, 3000), (30_000, 20), (16, 16), (1, 1)])
def test_whole_images_have_a_bounded_number_of_patches(size, tiny):
    processor = OpenVocabularyModel(tiny).image_processor
    height, width = WholeImage(processor, 16, most=60)(Image.new("RGB", size)).shape[1:]
    assert height % 16 == width % 16 == 0
    assert 1 <= height * width // 256 <= 60


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_in_float32(dtype, tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    second = SecondPass(model.to(dtype), threshold=0.3)
    for values in (pixel_values(model), second.transform(picture(size=(83, 49)))[None]):
        scores = second(values.to(dtype))
        assert scores.dtype == torch.float32
        assert ((scores >= 0) & (scores <= 1)).all()


def test_lora_is_part_of_both_passes(tiny):
    model = OpenVocabularyModel(tiny, LABELS, adapters=[LoRA(num_layers=1)]).eval()
    plain = OpenVocabularyModel(tiny, LABELS).eval()
    values = pixel_values(model)
    assert torch.allclose(SecondPass(model)(values), SecondPass(plain)(values), atol=1e-5)  # an untrained one adds zero


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2}, "threshold must be from 0 to 1"),
        ({"votes": 0}, "votes must be at least 1"),
        ({"blocks": [0]}, "blocks must be from 1 to 3; got"),
        ({"blocks": []}, "blocks must be from 1 to 3; got"),
        ({"first": "other"}, "first is 'refined' or 'head'; got 'other'"),
        ({"background": ["sky", "Sky"]}, "background: 'Sky' .* differ only in case"),
    ],
)
def test_arguments_are_checked(options, message, tiny):
    with pytest.raises(UserError, match=message):
        SecondPass(OpenVocabularyModel(tiny, LABELS), **options)


def test_towers_with_other_blocks_are_refused(tiny):
    model = OpenVocabularyModel(tiny, LABELS, adapters=[Ladder(num_layers=2, num_adapters=1)])
    with pytest.raises(UserError, match="needs a CLIP with a class token and its own blocks"):
        SecondPass(model)
