"""RAM's ladder as published: reference numbers, and what else it must hold."""

import copy

import pytest
import torch
from ram_reference import close, ram_clip, set_tower

from ovml.encoders import ImageEncoder, ImageFeatures
from ovml.encoders.adapters import RAMLadder, without_adapters
from ovml.encoders.adapters.ram import LabelAdapter
from ovml.utils.errors import UserError
from ovml.utils.tensors import through_float16

SETS = {"seen": slice(0, 7), "zsl": slice(7, None), "gzsl": slice(None)}


@pytest.fixture(scope="module")
def blocks(ram_json):
    return ram_json["settings"]["vision_layers_with_adapter"]


@pytest.fixture(scope="module")
def images(ram_golden, ram_json):
    return ram_golden["images"][: ram_json["settings"]["batch"]]


@pytest.fixture
def student(ram_golden, ram_json, blocks):
    encoder = ImageEncoder(ram_clip(ram_golden, ram_json["settings"]).requires_grad_(False))
    settings = ram_json["settings"]
    RAMLadder(len(blocks), settings["vision_tokens"]).attach(encoder, settings["projection"])
    set_tower(encoder, ram_golden, blocks)
    return encoder.eval()


@pytest.mark.parametrize("labels", SETS)
def test_features_in_evaluation(student, images, ram_golden, labels):
    with torch.no_grad():
        got = student(images).for_labels(ram_golden["text.student_embeds"][SETS[labels]])
    close(got.global_embeds, ram_golden[f"student.eval.{labels}.global"])
    close(got.patch_embeds, ram_golden[f"student.eval.{labels}.patch"])


def test_features_in_training(student, images, blocks, ram_golden):
    student.local_path.train()
    got = student(images).for_labels(ram_golden["text.student_embeds"][SETS["seen"]])
    close(got.global_embeds, ram_golden["student.train.global"])
    close(got.patch_embeds, ram_golden["student.train.patch"])
    for adapter, block in zip(student.local_path.adapters, blocks, strict=True):
        for norm in ("point_norm", "around_norm"):
            for name in ("running_mean", "running_var"):
                expected = ram_golden[f"student.train.after.{block}.{norm}.{name}"]
                close(getattr(getattr(adapter, norm), name), expected)


def test_the_tower_and_the_path_after_each_block(student, images, blocks, ram_golden):
    states, count = [], 1 + student.num_patches
    layers = student.vision_model.encoder.layers
    hooks = [layer.register_forward_hook(lambda _, __, out: states.append(out)) for layer in layers]
    labels = ram_golden["text.student_embeds"][SETS["seen"]]
    with torch.no_grad():
        student(images[:1])
        for hook in hooks:
            hook.remove()
        added = torch.zeros_like(ram_golden["trace.local"][0, 1:])
        for i, state in enumerate(states):
            last = i == len(states) - 1
            whole = state[0, :1] if last else state[0, :count]  # of the last one, the patches are kept at the end
            whole = torch.cat([whole, state[0, -count + 1 :]]) if last else whole
            close(whole, ram_golden["trace.tower"][i])
            if i in blocks:
                added = added + student.local_path.adapters[blocks.index(i)](whole[None, 1:], labels)[0]
            begin = 1 if last else count
            close(state[0, begin : begin + count - 1] + added, ram_golden["trace.local"][i, 1:])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_adapter_alone(student, ram_golden, mode):
    adapter = student.local_path.adapters[-1].train(mode == "train")
    labels = ram_golden["text.student_embeds"][SETS["seen"]]
    close(adapter(ram_golden["adapter_alone.tokens"][:, 1:], labels), ram_golden[f"adapter_alone.{mode}"][:, 1:])


def test_the_teacher(student, images, blocks, ram_golden):
    teacher = without_adapters(copy.deepcopy(student.tail(len(blocks))))
    RAMLadder(len(blocks)).attach_to_teacher(student, teacher)
    with torch.no_grad():
        got = teacher(student.trunk(images, len(blocks)))
    close(got.global_embeds, ram_golden["teacher.global"])
    close(got.patch_embeds, ram_golden["teacher.patch"])


def test_tokens_as_stored_are_exact_in_float16(ram_golden):
    tokens = [value for key, value in ram_golden.items() if key.startswith("tokens.")]
    assert tokens
    assert all(torch.equal(through_float16(value), value) for value in tokens)


def test_tokens_and_their_gradients_go_through_float16():
    tokens = torch.tensor([0.1, 1e-3], requires_grad=True)
    scale = torch.tensor([1e-9, 0.1003])
    (through_float16(tokens) * scale).sum().backward()
    assert torch.equal(tokens.grad, scale.half().float())
    assert tokens.grad[0] == 0


def test_an_untrained_adapter_starts_as_published():
    torch.manual_seed(0)
    adapter = LabelAdapter(768, 512, grid=14)
    assert sum(p.numel() for p in adapter.parameters()) == 4_330_532
    for layer, fan_in in ((adapter.point, 768), (adapter.around, 9 * 768), (adapter.maps, 18), (adapter.out, 512)):
        weight, bound = layer.weight, fan_in**-0.5
        assert torch.equal(weight.half().float(), weight)
        assert weight.abs().max() <= bound * 1.001
        if weight.numel() > 1000:
            assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    with torch.no_grad():
        assert float(adapter(torch.randn(4, 196, 768), torch.randn(925, 512)).std()) == pytest.approx(0.4, abs=0.05)


def test_patches_depend_on_the_labels_and_the_global_embedding_does_not(student, images, ram_golden):
    labels = ram_golden["text.student_embeds"]
    with torch.no_grad():
        features = student(images)
        one, other = features.for_labels(labels[:7]), features.for_labels(labels)
    assert isinstance(one, ImageFeatures)
    assert torch.equal(one.global_embeds, features.global_embeds)
    assert torch.equal(one.global_embeds, other.global_embeds)
    assert not torch.allclose(one.patch_embeds, other.patch_embeds, atol=1e-3)
    assert one.for_labels(labels) is one


@pytest.mark.parametrize("path_layers", [2, 3, None])
def test_the_path_begins_where_it_is_told(student, images, path_layers, ram_golden, ram_json):
    """A path over the last blocks is the whole one without what earlier blocks added to the patches."""
    clip = ram_clip(ram_golden, ram_json["settings"])
    encoder = ImageEncoder(clip)
    RAMLadder(2, 8, path_layers).attach(encoder, 48)
    blocks = ram_json["settings"]["vision_layers_with_adapter"]
    set_tower(encoder, ram_golden, blocks)
    encoder.eval()
    depth = encoder.num_layers
    with torch.no_grad():
        hidden = encoder.trunk(images, path_layers or depth)
        assert hidden.shape[1] == 1 + encoder.num_patches  # the path has not begun
        got = encoder(images).for_labels(ram_golden["text.student_embeds"])
        inside = encoder.tail(1)(encoder.trunk(images, 1)).for_labels(ram_golden["text.student_embeds"])
    close(got.global_embeds, ram_golden["student.eval.gzsl.global"])
    assert torch.equal(inside.patch_embeds, got.patch_embeds)
    same = path_layers is None
    assert torch.allclose(got.patch_embeds, ram_golden["student.eval.gzsl.patch"], atol=1e-3) == same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_tokens": -1}, "num_tokens"),
        ({"kernel_size": 4}, "kernel_size must be odd; got 4"),
        ({"num_layers": 3, "path_layers": 2}, "path_layers must be at least num_layers; got 2, num_layers=3"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as info:
        RAMLadder(**arguments)
    assert "\n" not in str(info.value)
