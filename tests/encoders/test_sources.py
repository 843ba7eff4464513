"""Patch sources against the published codes, and what they have in common."""

import numpy as np
import pytest
import torch
from conftest import reference_numbers
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import LocalOutlierFactor
from training_free import hidden_states, pixels, reference_clip

from ovml import UserError
from ovml.encoders.sources import ITACLIP, SCCLIP, SCLIP, CLIPSurgery, MaskCLIP, PlainPatches, mix, self_similarity
from ovml.encoders.sources.scclip import outlier_factors, outliers, replaced

SOURCES = {
    "plain": PlainPatches(),
    "maskclip": MaskCLIP(),
    "sclip": SCLIP(),
    "itaclip": ITACLIP(),
    "surgery": CLIPSurgery(),
    "scclip": SCCLIP(),
}


@pytest.fixture(scope="module")
def reference():
    """The published numbers, the CLIP, and the hidden states of the three test pictures."""
    golden = reference_numbers("training_free_golden.safetensors")
    clip = reference_clip(golden)
    with torch.no_grad():
        states = hidden_states(clip.vision_model, pixels(golden["images"][24:]))
    return golden, clip, states


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_sources_are_as_published(name, reference):
    golden, clip, states = reference
    tower = clip.vision_model
    patches = SOURCES[name].patches(states, list(tower.encoder.layers))
    embeds = clip.visual_projection(tower.post_layernorm(patches))
    assert distance(embeds, golden[f"patch.{name}"]) < 2e-5


@torch.no_grad()
def test_tagclip_s_patches_are_maskclip_s(reference):
    golden, _, _ = reference
    assert distance(golden["patch.maskclip"], golden["patch.tagclip"]) < 2e-5


@torch.no_grad()
def test_outliers_are_as_published(reference):
    golden, _, states = reference
    places = reference_numbers("training_free_golden.json")["scclip_outliers"]
    patches = states[-2][:, 1:]
    assert distance(outlier_factors(patches, 30), golden["scclip.lof"]) < 1e-5
    assert [mask.nonzero().flatten().tolist() for mask in outliers(patches, 30)] == places


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_an_image_s_patches_do_not_depend_on_its_batch(name, reference):
    _, clip, states = reference
    layers = list(clip.vision_model.encoder.layers)
    together = SOURCES[name].patches(states, layers)
    alone = SOURCES[name].patches([state[1:2] for state in states], layers)
    assert distance(alone, together[1:2]) < 1e-5


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_sources_read_no_block_before_their_first(name, reference):
    _, clip, states = reference
    source, layers = SOURCES[name], list(clip.vision_model.encoder.layers)
    first = source.first_block(12)
    hidden = [torch.full_like(state, torch.nan) if i < first else state for i, state in enumerate(states)]
    assert source.patches(hidden, layers).equal(source.patches(states, layers))
    if name not in ("plain", "maskclip", "sclip"):  # and need that one
        hidden[first] = hidden[first] * torch.nan
        assert source.patches(hidden, layers).isnan().any()


@torch.no_grad()
def test_attention_with_the_block_s_own_weights_is_its_attention(reference):
    _, clip, states = reference
    layer, before = clip.vision_model.encoder.layers[3], states[3]
    attention = layer.self_attn
    normed = layer.layer_norm1(before)
    queries, keys = (p(normed).unflatten(-1, (2, -1)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    weights = (queries @ keys.transpose(-1, -2) * attention.scale).softmax(dim=-1)
    assert torch.allclose(mix(layer, before, weights), attention(normed)[0], atol=1e-5)
    eye = torch.eye(before.shape[1]).expand(3, 1, -1, -1)
    assert torch.allclose(mix(layer, before, None), mix(layer, before, eye), atol=1e-6)
    assert self_similarity(layer, before, "v").sum(dim=-1).allclose(torch.ones(()))


@given(st.integers(0, 2**16), st.integers(2, 12))
def test_outlier_factors_are_the_ratio_of_mean_reaches(seed, neighbours):
    patches = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 25, 4)))
    distances = (patches[0].unsqueeze(0) - patches[0].unsqueeze(1)).square().sum(dim=-1)
    factors = []
    for i in range(25):
        near = sorted((j for j in range(25) if j != i), key=lambda j: distances[i, j].item())[:neighbours]
        reach = [sorted(distances[j][k].item() for k in range(25) if k != j)[neighbours - 1] for j in (i, *near)]
        factors.append(sum(reach[0] / r for r in reach[1:]) / neighbours)
    assert outlier_factors(patches, neighbours)[0].tolist() == pytest.approx(factors, rel=1e-6)


def test_a_far_patch_is_an_outlier_for_scikit_learn_too():
    patches = torch.randn(1, 49, 3, generator=torch.manual_seed(0))
    patches[0, 17] += 30
    judge = LocalOutlierFactor(n_neighbors=10).fit(patches[0].numpy())
    assert judge.negative_outlier_factor_.argmin() == 17
    assert outlier_factors(patches, 10).argmax() == 17


@given(st.integers(0, 2**16))
def test_outliers_become_the_mean_of_their_neighbours(seed):
    numbers = np.random.default_rng(seed)
    patches = torch.from_numpy(numbers.normal(size=(2, 16, 3)))
    outlying = torch.from_numpy(numbers.random((2, 16)) < 0.4)
    expected = patches.clone()
    for image in range(2):
        for place in outlying[image].nonzero().flatten().tolist():
            row, column = divmod(place, 4)
            near = [
                patches[image, 4 * r + c]
                for r in range(max(0, row - 1), min(4, row + 2))
                for c in range(max(0, column - 1), min(4, column + 2))
                if not outlying[image, 4 * r + c]
            ]
            if near:
                expected[image, place] = torch.stack(near).mean(dim=0)
    assert torch.allclose(replaced(patches, outlying), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ITACLIP(blocks=[]), "blocks are counted from 1"),
        (lambda: ITACLIP(blocks=[0]), "blocks are counted from 1"),
        (lambda: ITACLIP().first_block(9), "blocks must be from 1 to 9, the tower's"),
        (lambda: CLIPSurgery(0), "num_blocks must be at least 1"),
        (lambda: SCCLIP(similar=0), "similar must be greater than 0"),
        (lambda: SCCLIP().first_block(5), "needs a tower of at least 6 blocks"),
        (lambda: SCCLIP().patches([torch.zeros(1, 17, 4)] * 7, [None] * 6), "less than the tower's 16 patches"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(UserError, match=message):
        make()
