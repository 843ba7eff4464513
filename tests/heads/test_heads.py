import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ovml.encoders import ImageFeatures
from ovml.heads import CosineHead, GlobalHead, Head, LocalHead, TwoStreamHead
from ovml.heads.local import local_scores
from ovml.utils.errors import UserError


def features(batch=2, patches=5, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(
        torch.randn(batch, dim, generator=generator), torch.randn(batch, patches, dim, generator=generator)
    )


@pytest.mark.parametrize(
    ("head", "key"),
    [
        (TwoStreamHead(top_k=4), "score"),
        (TwoStreamHead(top_k=4, normalize=False), "score_unnormalized"),
        (GlobalHead(), "score_global_only"),
    ],
)
def test_scores_agree_with_the_published_code(golden, head, key):
    scores = head(ImageFeatures(golden["global_embed"], golden["patch_embeds"]), golden["label_embeds"])
    torch.testing.assert_close(scores, golden[key], atol=1e-5, rtol=0)


def test_two_stream_is_a_naive_loop():
    image, labels, k = features(), torch.randn(4, 8), 3
    local, whole = torch.zeros(2, 4), torch.zeros(2, 4)
    for b in range(2):
        for j in range(4):
            dots = sorted((float(p @ labels[j]) for p in image.patch_embeds[b]), reverse=True)
            local[b, j] = sum(dots[:k]) / k
            whole[b, j] = image.global_embeds[b] @ labels[j]
    expected = torch.stack([(loc / loc.norm() + glo / glo.norm()) / 2 for loc, glo in zip(local, whole, strict=True)])
    torch.testing.assert_close(TwoStreamHead(top_k=k)(image, labels), expected)


@given(patches=st.integers(1, 6), labels=st.integers(1, 5), seed=st.integers(0, 99))
def test_local_head_with_all_patches_is_the_mean_patch(patches, labels, seed):
    image, embeds = features(patches=patches, seed=seed), torch.randn(labels, 8)
    mean = ImageFeatures(image.patch_embeds.mean(dim=1), image.patch_embeds)
    torch.testing.assert_close(
        LocalHead(top_k=patches)(image, embeds), GlobalHead()(mean, embeds), atol=1e-5, rtol=1e-4
    )


@given(order=st.permutations(range(5)))
def test_order_of_labels_does_not_matter(order):
    image, embeds = features(), torch.randn(5, 8)
    head = TwoStreamHead(top_k=2)
    torch.testing.assert_close(head(image, embeds[order]), head(image, embeds)[:, order])


def test_cosine_head_is_cosine():
    image, embeds = features(), torch.randn(4, 8)
    expected = cosine_similarity(image.global_embeds.numpy(), embeds.numpy())
    torch.testing.assert_close(CosineHead()(image, embeds), torch.from_numpy(expected))


@pytest.mark.parametrize("head", [GlobalHead(), LocalHead(top_k=2), TwoStreamHead(top_k=2), CosineHead()])
def test_zero_features_give_zeros_and_finite_gradients(head):
    image = ImageFeatures(torch.zeros(1, 8, requires_grad=True), torch.zeros(1, 3, 8, requires_grad=True))
    scores = head(image, torch.randn(4, 8))
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros(1, 4))
    for embeds in image:
        assert embeds.grad is None or embeds.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1.0, 1e4])
def test_scores_of_any_size_become_rows_of_length_one(size):
    image, embeds = features(), torch.randn(37, 8)
    tiny = ImageFeatures(*(size * part for part in image))
    torch.testing.assert_close(GlobalHead()(tiny, embeds).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(TwoStreamHead(top_k=2)(tiny, embeds), TwoStreamHead(top_k=2)(image, embeds))


@pytest.mark.parametrize("top_k", [0, 6])
def test_top_k_beyond_the_patches_is_a_clear_error(top_k):
    with pytest.raises(UserError, match=f"top_k must be from 1 to 5, the number of patches of an image; got {top_k}"):
        local_scores(features(), torch.randn(4, 8), top_k)


@pytest.mark.parametrize("head", [LocalHead, TwoStreamHead])
@pytest.mark.parametrize("top_k", [0, -1, 1.5, "x", True, None, float("nan")])
def test_a_top_k_that_is_no_count_is_refused_at_once(head, top_k):
    with pytest.raises(UserError, match=f"{head.__name__}: top_k must be (a whole number|greater than 0); got"):
        head(top_k=top_k)


def test_head_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Head()


def all_at_once(image, embeds, top_k):
    return (embeds @ image.patch_embeds.transpose(1, 2)).sort(dim=-1, descending=True).values[..., :top_k].mean(dim=-1)


@given(labels=st.integers(1, 40), batch=st.integers(1, 4), top_k=st.integers(1, 5), budget=st.integers(1, 300))
def test_labels_in_chunks_give_the_scores_and_gradients_of_all_at_once(labels, batch, top_k, budget):
    image, embeds = features(batch=batch), torch.randn(labels, 8)
    weights = torch.randn(batch, labels)
    results = []
    for score in (all_at_once, lambda *arguments: local_scores(*arguments, budget=budget)):
        inputs = [image.patch_embeds.clone().requires_grad_(), embeds.clone().requires_grad_()]
        scores = score(ImageFeatures(image.global_embeds, inputs[0]), inputs[1], top_k)
        (scores * weights).sum().backward()
        results.append([scores, *(value.grad for value in inputs)])
    for expected, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [LocalHead(top_k=2), TwoStreamHead(top_k=2), TwoStreamHead(top_k=2, normalize=False)])
@pytest.mark.parametrize("budget", [1, 70, 1000])
def test_heads_normalise_over_all_labels_not_over_chunks(head, budget, monkeypatch):
    image, embeds = features(), torch.randn(37, 8)
    expected = head(image, embeds)
    monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", budget)
    torch.testing.assert_close(head(image, embeds), expected, atol=1e-6, rtol=0)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [value.numel() for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]
        self.size = max(self.size, *sizes, 0)
        return result


def test_a_large_vocabulary_takes_no_more_than_its_share_of_memory(monkeypatch):
    monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", 1000)
    image, embeds = features(batch=4, patches=20), torch.randn(300, 8)
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode, Largest() as largest:
            TwoStreamHead(top_k=4)(image, embeds)
        assert largest.size <= max(1000, 4 * 300, embeds.numel())  # all at once: 24,000


def test_scores_of_no_image():
    empty = ImageFeatures(torch.zeros(0, 8), torch.zeros(0, 5, 8))
    assert TwoStreamHead(top_k=2)(empty, torch.randn(4, 8)).shape == (0, 4)
