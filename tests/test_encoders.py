import pytest
import torch
from reference_clip import reference_clip

from ovml.checkpoints import load_clip, load_tokenizer
from ovml.encoders import ImageEncoder, TextEncoder
from ovml.errors import UserError


def test_image_embeddings_agree_with_the_published_code(golden):
    with torch.no_grad():
        features = ImageEncoder(reference_clip(golden))(golden["images"])
    torch.testing.assert_close(features.global_embeds, golden["global_embed"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.patch_embeds, golden["patch_embeds"], atol=1e-5, rtol=0)


def test_global_embedding_is_transformers_own(tiny):
    clip = load_clip(tiny)
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        ours = ImageEncoder(clip)(pixels).global_embeds
        theirs = clip.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_trunk_and_tail_are_the_whole_tower(tiny, num_layers):
    encoder = ImageEncoder(load_clip(tiny))
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        split = encoder.tail(num_layers)(encoder.trunk(pixels, num_layers))
        whole = encoder(pixels)
    assert torch.equal(split.patch_embeds, whole.patch_embeds)


def test_tail_longer_than_the_tower_is_refused(tiny):
    with pytest.raises(ValueError, match="from 0 to 3, the tower's blocks; got 4"):
        ImageEncoder(load_clip(tiny)).tail(4)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_text_embeddings_equal_transformers_at_full_padding(tiny, batch_size):
    clip, tokenizer = load_clip(tiny), load_tokenizer(tiny)
    texts = ["a rather long label of words", "b", "black cat", "cc"]
    padded = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        theirs = clip.get_text_features(padded["input_ids"]).pooler_output
        ours = TextEncoder(clip, tokenizer, batch_size)(texts)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_text_tower_never_runs_at_full_length(tiny):
    encoder = TextEncoder(load_clip(tiny), load_tokenizer(tiny))
    widths = []
    encoder.text_model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    encoder(["cat", "horse"])
    assert widths == [len("horse") + 2]


def test_a_label_longer_than_the_context_is_named(tiny):
    encoder = TextEncoder(load_clip(tiny), load_tokenizer(tiny))
    with pytest.raises(UserError, match="'x{90}' is 92 tokens, the text tower takes 77"):
        encoder(["short", "x" * 90])
