import copy
import math
import re

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from ovml.training.optim import AdamWAndSGD, fuse, layer_decay_groups, warmup_cosine, warmup_cosine_schedule

STEPS_PER_EPOCH = 1000
BLOCK_NAMES = {
    "attn.out_proj": ["self_attn.out_proj"],
    "attn.in_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "mlp.c_fc": ["mlp.fc1"],
    "mlp.c_proj": ["mlp.fc2"],
    "ln_1": ["layer_norm1"],
    "ln_2": ["layer_norm2"],
}


def clip_of(depth):
    tower = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    return CLIPModel(
        CLIPConfig(
            vision_config={**tower, "num_hidden_layers": depth, "image_size": 16, "patch_size": 8},
            text_config={**tower, "num_hidden_layers": 1, "vocab_size": 10, "max_position_embeddings": 8},
            projection_dim=4,
        )
    )


def hugging_face_names(name):
    """Names in `CLIPModel` of a parameter of the published code; none for its unused MLP."""
    if name == "projection_dist":
        return ["visual_projection.weight"]
    if name.startswith("projection."):
        return []
    if name.startswith("ln_post."):
        return [name.replace("ln_post", "vision_model.post_layernorm")]
    block, part, kind = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name).groups()
    return [f"vision_model.encoder.layers.{block}.{new}.{kind}" for new in BLOCK_NAMES[part]]


def two_groups(lr=1e-3):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.AdamW([{"params": parameters[:1], "lr": lr}, {"params": parameters[1:], "lr": 0.65 * lr}], lr=lr)


def scheduler_for(optimizer, epochs=20):
    return warmup_cosine_schedule(optimizer, epochs * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, min_lr=1e-6)


def steps(optimizer, scheduler, count):
    rates = []
    for _ in range(count):
        optimizer.step()
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def test_published_schedule_by_the_function(golden_json):
    for epoch, rate, _ in golden_json["lr_schedule"]:
        assert warmup_cosine(epoch, 20, 2, 1e-3, 1e-6) == pytest.approx(rate, rel=1e-9)
        step = epoch * STEPS_PER_EPOCH
        assert warmup_cosine(step, 20_000, 2_000, 1e-3, 1e-6) == pytest.approx(rate, rel=1e-9)


def test_published_schedule_by_the_scheduler(golden_json):
    optimizer = two_groups()
    scheduler = scheduler_for(optimizer)
    rates = [[group["lr"] for group in optimizer.param_groups], *steps(optimizer, scheduler, 20_000)]
    for epoch, *expected in golden_json["lr_schedule"]:
        assert rates[round(epoch * STEPS_PER_EPOCH)] == pytest.approx(expected, rel=1e-9)
    assert rates[-1] == pytest.approx([1e-6, 0.65e-6])
    assert scheduler.get_last_lr() == rates[-1]


def test_schedule_without_warm_up():
    assert warmup_cosine(0, 10, 0, 1.0, 0.0) == 1.0
    assert warmup_cosine(5, 10, 0, 1.0, 0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("step", [10, 11, 1000])
def test_schedule_stays_at_its_end(step):
    assert warmup_cosine(step, 10, 2, 1.0, 0.1) == pytest.approx(0.1)


def test_warm_up_as_long_as_the_training():
    rates = [warmup_cosine(step, 10, 10, 1.0, 0.0) for step in range(11)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(10)])
    assert math.isfinite(rates[10])


def test_fractional_warm_up():
    rates = [warmup_cosine(step, 10, 2.5, 1.0, 0.0) for step in range(11)]
    assert rates[:3] == pytest.approx([0, 0.4, 0.8])
    assert max(rates) <= 1
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize("stop", [0, 3, 700, 2000, 2500])
def test_state_dict_continues_identically(stop):
    optimizer = two_groups()
    scheduler = scheduler_for(optimizer, epochs=3)
    steps(optimizer, scheduler, stop)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    expected = steps(optimizer, scheduler, 50)

    other = two_groups()
    resumed = scheduler_for(other, epochs=3)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert resumed.get_last_lr() == saved[1]["_last_lr"]
    assert steps(other, resumed, 50) == expected


def test_published_groups(golden_json):
    clip = clip_of(12)
    names = {id(parameter): name for name, parameter in clip.named_parameters()}
    ours = {
        group["name"]: (
            group["lr"] / 1e-3,
            group["weight_decay"],
            {names[id(parameter)] for parameter in group["params"]},
        )
        for group in layer_decay_groups(clip, 1e-3, 0.05, 0.65, num_layers=2)
    }
    theirs = golden_json["param_groups_12_layers"]
    assert ours.keys() == theirs.keys()
    for key, group in theirs.items():
        scale, decay, params = ours[key]
        assert scale == pytest.approx(group["lr_scale"])
        assert decay == group["weight_decay"]
        assert params == {new for old in group["params"] for new in hugging_face_names(old)}


@pytest.mark.parametrize(("depth", "num_layers"), [(1, 1), (3, 2), (5, 5), (6, 0)])
def test_other_depths(depth, num_layers):
    clip = clip_of(depth)
    groups = layer_decay_groups(clip, 1.0, 0.1, 0.5, num_layers)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    vision = clip.vision_model
    for i, layer in enumerate(vision.encoder.layers):
        learns = i >= depth - num_layers
        for parameter in layer.parameters():
            assert rates.get(id(parameter)) == (0.5 ** (depth - i) if learns else None)
    for part in (vision.post_layernorm, clip.visual_projection):
        assert all(rates[id(parameter)] == 1.0 for parameter in part.parameters())
    assert not any(id(parameter) in rates for parameter in vision.embeddings.parameters())
    assert not any(id(parameter) in rates for parameter in clip.text_model.parameters())


@pytest.mark.parametrize("num_layers", [0, 2, 4])
def test_no_parameter_appears_twice_and_adamw_takes_the_groups(num_layers):
    groups = layer_decay_groups(clip_of(4), 1e-3, 0.05, 0.65, num_layers)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == 3 + 16 * num_layers
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    warmup_cosine_schedule(optimizer, 10)
    assert len({group["name"] for group in optimizer.param_groups}) == len(groups)


def test_matrices_decay_and_vectors_do_not():
    for group in layer_decay_groups(clip_of(2), 1e-3, 0.05, 0.65, 2):
        matrices = {parameter.ndim > 1 for parameter in group["params"]}
        assert matrices == {group["weight_decay"] > 0}


@pytest.mark.parametrize("num_layers", [-1, 4])
def test_num_layers_out_of_range(num_layers):
    with pytest.raises(ValueError, match=f"num_layers must be from 0 to 3.*got {num_layers}"):
        layer_decay_groups(clip_of(3), 1e-3, 0.05, 0.65, num_layers)


@pytest.mark.parametrize("kind", ["AdamW", "AdamWAndSGD"])
def test_fused_updates_are_the_same_and_leave_clipping_and_scaling_to_others(kind):
    """1e-7: one kernel rounds in other places."""
    results = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(3)]
        groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.01}]
        if kind == "AdamWAndSGD":
            groups[1]["momentum"] = 0.9
        optimizer = torch.optim.AdamW(groups) if kind == "AdamW" else AdamWAndSGD(groups)
        fuse(optimizer, "cpu" if is_fused else "cuda")
        assert [group["fused"] is True for group in optimizer.param_groups] == [is_fused, is_fused and kind == "AdamW"]
        assert not getattr(optimizer, "_step_supports_amp_scaling", False)
        for _ in range(3):
            optimizer.zero_grad()
            sum(weight.square().sum() for weight in weights).backward()
            optimizer.step()
        results.append([weight.detach() for weight in weights])
    torch.testing.assert_close(*results, atol=1e-7, rtol=1e-6)


def test_an_optimizer_that_says_how_it_runs_is_left_alone():
    weight = torch.nn.Parameter(torch.ones(2))
    for optimizer in (torch.optim.AdamW([weight], foreach=True), torch.optim.AdamW([weight], fused=False)):
        fuse(optimizer, "cpu")
        assert not optimizer.param_groups[0]["fused"]
    fuse(torch.optim.SGD([weight]), "cpu")
