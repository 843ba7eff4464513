"""Labels as queries: what an untrained head scores, independence of labels, what learns, binding."""

import copy
import json
import math

import pytest
import torch
from commands import SMALL
from hypothesis import given
from hypothesis import strategies as st
from test_spatial_softmax import features

from ovml import OVMultiLabelClassifier, UserError
from ovml.cli.main import main
from ovml.encoders import ImageFeatures
from ovml.heads import GlobalHead, Head, QueryHead, SpatialSoftmaxHead
from ovml.heads.query import NearIdentity
from ovml.utils.parts import describe

DIM = 8


def trained(head, seed=1):
    """Weights as training might leave them: all different from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return head


def dense(module):
    """A layer as its matrix and offset."""
    if isinstance(module, NearIdentity):
        return torch.eye(len(module.change)) + module.change, 0
    return module.weight, 0 if module.bias is None else module.bias


def apply(module, row):
    matrix, offset = dense(module)
    return matrix @ row + offset


def naive(head, whole, patches, label):
    """The docstring's equations for one image and one label, head by head, patch by patch."""
    label = label / label.norm()
    patches = [patch / patch.norm() for patch in patches]
    size = len(label) // head.num_heads
    state = torch.zeros_like(label)
    for layer in head.layers:
        query = apply(layer.query, label + state)
        keys, values = ([apply(part, patch) for patch in patches] for part in (layer.key, layer.value))
        found = []
        for i in range(head.num_heads):
            own = slice(i * size, (i + 1) * size)
            weights = torch.stack([head.num_heads / head.temperature * (query[own] @ key[own]) for key in keys])
            weights = weights.softmax(dim=0)
            found.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)))
        state = state + apply(layer.output, torch.cat(found))
        normed = (state - state.mean()) / (state.var(unbiased=False) + 1e-5).sqrt() * layer.norm.weight
        hidden = apply(layer.hidden, normed + layer.norm.bias)
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        state = state + apply(layer.back, hidden)
    score = apply(head.projection, state) @ label
    return head.scale * ((1 - head.global_weight) * score + head.global_weight * (whole / whole.norm()) @ label)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("global_weight", [0.0, 0.4])
def test_it_is_the_equations_as_a_loop(num_layers, num_heads, global_weight):
    head = trained(QueryHead(num_heads, 12, num_layers, 0.3, 2.0, global_weight).bind(DIM))
    image, labels = features(batch=3), torch.randn(4, DIM)
    with torch.no_grad():
        found = head(image, labels)
        expected = torch.tensor([[naive(head, *pair, label) for label in labels] for pair in zip(*image, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@given(temperature=st.floats(0.02, 2), weight=st.floats(0, 1), layers=st.integers(1, 3), seed=st.integers(0, 999))
def test_untrained_with_one_head_it_is_clip_pooled_by_attention(temperature, weight, layers, seed):
    image, labels = features(seed=seed), torch.randn(5, DIM)
    head = QueryHead(1, 16, layers, temperature, 3.0, weight).bind(DIM)
    expected = SpatialSoftmaxHead(temperature, 3.0, weight)(image, labels)
    torch.testing.assert_close(head(image, labels), expected, atol=1e-5, rtol=1e-5)


@given(order=st.permutations(range(6)), kept=st.integers(1, 6), num_heads=st.sampled_from([1, 2]))
def test_a_label_s_score_depends_on_no_other(order, kept, num_heads):
    head, image, labels = trained(QueryHead(num_heads, 8, 2).bind(DIM)), features(), torch.randn(6, DIM)
    with torch.no_grad():
        some, all_ = head(image, labels[order][:kept]), head(image, labels)[:, order][:, :kept]
    torch.testing.assert_close(some, all_, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 900, 10_000])
def test_labels_in_chunks_give_the_same_scores_and_gradients(budget, monkeypatch):
    results = []
    labels, weights = torch.randn(37, DIM), torch.randn(2, 37)
    for value in (10**9, budget):
        monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", value)
        torch.manual_seed(0)
        head = trained(QueryHead(2, 8, 2, global_weight=0.5).bind(DIM))
        image = ImageFeatures(*(x.clone().requires_grad_() for x in features()))
        scores = head(image, labels)
        (scores * weights).sum().backward()
        results.append((scores, *(x.grad for x in image), *(p.grad for p in head.parameters())))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_all_weights_learn():
    torch.manual_seed(0)
    head = QueryHead(2, 8, num_layers=2).bind(DIM)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    optimizer = torch.optim.SGD(head.parameters(), 0.5)
    image, labels, target = features(batch=4), torch.randn(5, DIM), torch.randn(4, 5)
    losses = []
    for _ in range(10):
        loss = (head(image, labels) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in head.parameters())  # DDP waits for each of them
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, value in head.state_dict().items() if torch.equal(value, before[name])] == []


def test_zero_features_and_no_image():
    head, labels = QueryHead(2, 8).bind(DIM), torch.randn(4, DIM)
    image = ImageFeatures(torch.zeros(1, DIM), torch.zeros(1, 3, DIM, requires_grad=True))
    scores = head(image, labels)
    scores.sum().backward()
    assert torch.equal(scores, torch.zeros(1, 4))
    assert image.patch_embeds.grad.isfinite().all()
    assert head(features(batch=0), labels).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    head, image, labels = QueryHead(2, 8, global_weight=0.5).bind(DIM), features(), torch.randn(4, DIM)
    with torch.no_grad():
        expected = head(image, labels)
        found = copy.deepcopy(head).to(dtype)(ImageFeatures(*(x.to(dtype) for x in image)), labels.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0)


# ---------------------------------------------------------------------- binding


def test_bound_twice_it_keeps_its_weights():
    head = trained(QueryHead(2).bind(DIM))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert head.bind(DIM) is head
    assert set(before) == set(head.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    with pytest.raises(UserError, match="has width 8 and cannot take 16; make a new one"):
        head.bind(16)


def test_heads_that_need_nothing_are_bound_to_anything():
    head = GlobalHead()
    assert head.bind(3) is head
    assert head.bind(4) is head


def test_before_it_is_bound_it_says_so():
    with pytest.raises(UserError, match=r"has no weights yet; call head.bind\(embed_dim\)"):
        QueryHead()(features(), torch.randn(3, DIM))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "QueryHead: num_heads must be greater than 0; got 0"),
        ({"num_layers": 0}, "num_layers must be greater than 0"),
        ({"hidden_dim": 0}, "hidden_dim must be greater than 0"),
        ({"temperature": -1}, "temperature must be greater than 0"),
        ({"scale": 0}, "scale must be greater than 0"),
        ({"global_weight": -0.1}, "global_weight must be from 0 to 1"),
        ({"num_heads": 3}, "num_heads must divide the embeddings' width 8; got 3"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        QueryHead(**arguments).bind(DIM)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- in a classifier


class WidthNotKept(Head):
    """A head whose constructor makes another one than it was told."""

    def __init__(self, width=3):
        super().__init__()
        self.width = width
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, features, label_embeds):
        return features.global_embeds @ label_embeds.T


def test_describing_a_head_still_compares_the_shapes_of_weights():
    head = WidthNotKept(3)
    head.weight = torch.nn.Parameter(torch.ones(4))
    with pytest.raises(UserError, match="it is another one"):
        describe(head)
    assert describe(QueryHead(2).bind(DIM))["init_args"]["num_heads"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_scores_the_same_to_the_last_bit(tiny, tmp_path, dtype):
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=QueryHead(4, 8, 2, 0.1, 5.0, 0.25)).eval().to(dtype)
    trained(model.model.head)
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert {p.dtype for p in again.model.head.parameters()} == {torch.float32}
    pixels = torch.randn(2, 3, 48, 48).to(dtype)
    with torch.no_grad():
        assert torch.equal(again.to(dtype)(pixels, ["a", "b c"]), model(pixels, ["a", "b c"]))


def test_fit_trains_it_and_its_checkpoint_is_enough(tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["fit", "--config", "demo.yaml", *SMALL, "--model.head", "ovml.heads.QueryHead"]
    arguments += [
        "--model.head.num_heads",
        "2",
        "--model.head.hidden_dim",
        "32",
        "--trainer.max_epochs",
        "1",
    ]
    arguments += ["--trainer.default_root_dir", str(out), "--data.cache_dir", str(tmp_path / "cache")]
    assert main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    run = out / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "vision", "prompt"}
    model = OVMultiLabelClassifier.from_pretrained(run)
    assert isinstance(model.model.head, QueryHead)
    assert model.model.head.layers[0].query.change.abs().sum() > 0
    assert model.model.head.layers[0].back.weight.abs().sum() > 0
