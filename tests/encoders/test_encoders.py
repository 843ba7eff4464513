import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_clip import reference_clip

from ovml.encoders import ImageEncoder, TextEncoder, pad_rows
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.encoders.prefix import shared_length
from ovml.utils.errors import UserError


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
    tokens = []
    mlp = encoder.text_model.encoder.layers[0].mlp
    mlp.register_forward_pre_hook(lambda module, args: tokens.append(args[0].flatten(0, -2).shape[0]))
    encoder(["cat", "horse"])
    encoder(["horse"])
    # The start token once, then both padded to the longer one; a single text by itself.
    assert tokens == [1 + 2 * (len("horse") + 1), len("horse") + 2]


@given(
    texts=st.lists(st.text("ab", min_size=1, max_size=5), min_size=2, max_size=6),
    prefix=st.text("xy", max_size=4),
)
def test_what_texts_begin_with_is_computed_once_and_changes_nothing(tiny, texts, prefix):
    encoder = TextEncoder(load_clip(tiny), load_tokenizer(tiny))
    ids, _ = encoder.tokenize([prefix + text for text in texts])
    embeds = encoder.token_embedding(pad_rows(ids)).detach()
    lengths = torch.tensor([len(row) for row in ids])
    results = []
    for num_shared in (0, 1, shared_length(ids)):
        given_embeds = embeds.clone().requires_grad_()
        out = encoder.encode(given_embeds, lengths, num_shared)
        out.square().sum().backward()
        # A shared token's gradient stands where it is taken from, or in every row: its sum is the same.
        results.append((out.detach(), given_embeds.grad.sum(dim=0)))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-4, rtol=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4))
def test_shared_length_is_the_longest_common_beginning_short_of_the_end(rows):
    length = shared_length(rows)
    assert length <= min(map(len, rows)) - 1
    assert len({tuple(row[:length]) for row in rows}) == 1
    assert length == min(map(len, rows)) - 1 or len({tuple(row[: length + 1]) for row in rows}) > 1


def test_a_label_longer_than_the_context_is_named(tiny):
    encoder = TextEncoder(load_clip(tiny), load_tokenizer(tiny))
    with pytest.raises(UserError, match="'x{90}' is 92 tokens, the text tower takes 77"):
        encoder(["short", "x" * 90])
    with pytest.raises(
        UserError, match=r"'a (red ){24}re\.{3}' is 30003 tokens, the text tower takes 77; shorten it"
    ) as info:
        encoder(["a " + "red " * 10_000])
    assert len(str(info.value)) < 250


def test_weights_that_are_a_pickle_are_not_read(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(load_clip(tiny).state_dict(), tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a complete CLIP checkpoint"):
        load_clip(str(tmp_path / "clip"))
