"""ML-Decoder's and QKS's decoders against their equations, written out for one image; binding, chunks, training."""

import copy
import math

import pytest
import torch
from test_spatial_softmax import features

from ovml import OpenVocabularyModel, UserError, load_model
from ovml.encoders import ImageFeatures
from ovml.heads import MLDecoderHead, QKSHead
from ovml.saving import save_model

DIM = 8


def ml_decoder():
    return MLDecoderHead(decoder_dim=12, num_heads=3, hidden_dim=10)


def qks():
    return QKSHead(num_queries=3, num_layers=2, width=12, num_heads=2, hidden_dim=10)


HEADS = [ml_decoder, qks]


def trained(head, seed=1):
    """Weights as training might leave them: all different from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return head


def normed(row, norm):
    return (row - row.mean()) / (row.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


def attention(module, query, tokens):
    """Attention of one query to tokens, head by head and token by token."""
    width, heads = len(query), module.num_heads
    if module.in_proj_weight is None:
        matrices = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    else:
        matrices = module.in_proj_weight.chunk(3)
    offsets = module.in_proj_bias.chunk(3)
    asked = matrices[0] @ query + offsets[0]
    keys, values = ([m @ t + o for t in tokens] for m, o in zip(matrices[1:], offsets[1:], strict=True))
    found = []
    for i in range(heads):
        own = slice(i * width // heads, (i + 1) * width // heads)
        exponentials = [math.exp(float(asked[own] @ key[own]) / math.sqrt(width // heads)) for key in keys]
        found.append(sum(e / sum(exponentials) * v[own] for e, v in zip(exponentials, values, strict=True)))
    return module.out_proj.weight @ torch.cat(found) + module.out_proj.bias


def naive_ml_decoder(head, image, labels):
    layer, scores = head.layer, []
    memory = [(head.patch_map.weight @ patch + head.patch_map.bias).clamp(min=0) for patch in image.patch_embeds[0]]
    for label in labels:
        query = (head.label_map.weight @ label + head.label_map.bias).clamp(min=0)
        state = normed(2 * query, layer.query_norm)  # without dropout a query is added to itself
        state = normed(state + attention(layer.attention, state, memory), layer.attention_norm)
        hidden = (layer.hidden.weight @ state + layer.hidden.bias).clamp(min=0)
        state = normed(state + layer.back.weight @ hidden + layer.back.bias, layer.norm)
        scores.append(state @ head.weight[:, 0] + head.bias[0])
    return torch.stack(scores)


def naive_qks(head, image, labels):
    tokens = [image.global_embeds[0], *image.patch_embeds[0]]
    states = [normed(query, head.norm) for query in head.queries]
    for layer in head.layers:
        states = [normed(s + attention(layer.own, s, states), layer.own_norm) for s in states]
        states = [normed(s + attention(layer.cross, s, tokens), layer.cross_norm) for s in states]
        hidden = [layer.hidden.weight @ s + layer.hidden.bias for s in states]
        hidden = [h * (1 + torch.erf(h / math.sqrt(2))) / 2 for h in hidden]
        states = [
            normed(s + layer.back.weight @ h + layer.back.bias, layer.norm) for s, h in zip(states, hidden, strict=True)
        ]
    projected = [head.projection.weight @ s for s in states]
    return torch.stack([max(p @ label for p in projected) for label in labels])


@pytest.mark.parametrize(("make", "naive"), [(ml_decoder, naive_ml_decoder), (qks, naive_qks)])
def test_it_is_the_equations_for_one_image(make, naive):
    head, labels = trained(make().bind(DIM)).eval(), torch.randn(4, DIM)
    with torch.no_grad():
        for seed in range(3):
            image = features(batch=1, seed=seed)
            torch.testing.assert_close(head(image, labels)[0], naive(head, image, labels), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", HEADS)
def test_a_label_s_score_depends_on_no_other_and_an_image_s_on_no_other(make):
    head, image, labels = trained(make().bind(DIM)).eval(), features(batch=3), torch.randn(6, DIM)
    with torch.no_grad():
        scores = head(image, labels)
        torch.testing.assert_close(head(image, labels[[4, 1]]), scores[:, [4, 1]], atol=1e-5, rtol=1e-5)
        alone = ImageFeatures(image.global_embeds[1:2], image.patch_embeds[1:2])
        torch.testing.assert_close(head(alone, labels), scores[1:2], atol=1e-5, rtol=1e-5)
        assert head(features(batch=0), labels).shape == (0, 6)


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("budget", [1, 900])
def test_labels_in_chunks_give_the_same_scores_and_gradients(make, budget, monkeypatch):
    results = []
    labels, weights = torch.randn(17, DIM), torch.randn(2, 17)
    for value in (10**9, budget):
        monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", value)
        torch.manual_seed(0)
        head = trained(make().bind(DIM)).eval()
        scores = head(features(), labels)
        (scores * weights).sum().backward()
        results.append((scores, *(p.grad for p in head.parameters())))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", HEADS)
def test_all_weights_learn_and_dropout_is_for_training(make):
    torch.manual_seed(0)
    head, image, labels = make().bind(DIM), features(batch=4), torch.randn(5, DIM)
    assert not torch.equal(head(image, labels), head(image, labels))
    target, before = torch.randn(4, 5), {name: value.clone() for name, value in head.state_dict().items()}
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    for _ in range(5):
        loss = (head(image, labels) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in head.parameters())  # DDP waits for each of them
        optimizer.step()
    assert [name for name, value in head.state_dict().items() if torch.equal(value, before[name])] == []
    head.eval()
    assert torch.equal(head(image, labels), head(image, labels))


@pytest.mark.parametrize("make", HEADS)
def test_half_precision(make):
    head, image, labels = make().bind(DIM).eval(), features(), torch.randn(4, DIM)
    with torch.no_grad():
        expected = head(image, labels)
        half = ImageFeatures(*(x.bfloat16() for x in image))
        found = copy.deepcopy(head).bfloat16()(half, labels.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("make", HEADS)
def test_bound_twice_it_keeps_its_weights(make):
    head = trained(make().bind(DIM))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert head.bind(DIM) is head
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    with pytest.raises(UserError, match="has width 8 and cannot take 16; make a new one"):
        head.bind(16)
    with pytest.raises(UserError, match=r"has no weights yet; call head.bind\(embed_dim\)"):
        make()(features(), torch.randn(3, DIM))


@pytest.mark.parametrize("make", HEADS)
def test_a_saved_model_scores_the_same(make, tiny, tmp_path):
    model = OpenVocabularyModel(tiny, ["cat", "dog"], head=trained(make().bind(16))).eval()
    save_model(model, tmp_path / "saved")
    again, pixels = load_model(tmp_path / "saved"), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(model(pixels, ["a", "b c", "d"]), again(pixels, ["a", "b c", "d"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLDecoderHead(decoder_dim=12, num_heads=5), "num_heads must divide decoder_dim 12; got 5"),
        (lambda: MLDecoderHead(dropout=1.5), "dropout must be from 0 to 1"),
        (lambda: QKSHead(width=12, num_heads=5), "num_heads must divide width 12; got 5"),
        (lambda: QKSHead(num_queries=0), "num_queries must be greater than 0"),
    ],
)
def test_bad_arguments_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_published_sizes_and_starts():
    torch.manual_seed(0)
    head = MLDecoderHead().bind(512)
    assert (head.layer.attention.embed_dim, head.layer.attention.num_heads, head.layer.hidden.out_features) == (
        768, 8, 2048,
    )  # fmt: skip
    assert 0.045 < head.weight.std() < 0.056  # Xavier's, of 768 inputs and an output: sqrt(2 / 769) = 0.051
    shared = QKSHead(num_layers=1).bind(512)
    assert shared.queries.shape == (12, 768)
    for matrix in (shared.queries, shared.layers[0].cross.k_proj_weight, shared.layers[0].hidden.weight):
        assert 0.0195 < matrix.std() < 0.0205
    assert not shared.layers[0].own.in_proj_bias.any()
