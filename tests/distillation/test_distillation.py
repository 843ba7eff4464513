"""What keeps the adapted tower near the original, each against the paper's formula as a plain loop."""

import json
import math

import pytest
import torch
from commands import SMALL
from hypothesis import given
from hypothesis import strategies as st

from ovml import OVMultiLabelClassifier, UserError
from ovml.cli.main import main
from ovml.distillation import (
    CosineDistillation,
    Distillation,
    FeatureL1,
    PatchDistillation,
    RelationalDistillation,
    SumDistillation,
)
from ovml.encoders import ImageFeatures
from ovml.utils.parts import build, describe

ALL = [
    FeatureL1(),
    CosineDistillation(),
    RelationalDistillation(),
    PatchDistillation(),
    PatchDistillation("l1"),
    SumDistillation(0.5, 0.25, 3.0, 2.0),
]
NEW = ALL[1:]


def name(part):
    return f"{type(part).__name__}-{getattr(part, 'distance', '')}"


every = pytest.mark.parametrize("distil", ALL, ids=name)
new = pytest.mark.parametrize("distil", NEW, ids=name)


def features(seed, size=4, patches=3, dim=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(
        torch.randn(size, dim, generator=generator).to(dtype),
        torch.randn(size, patches, dim, generator=generator).to(dtype),
    )


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (length(a) * length(b))


def loop(distil, student, teacher):
    """The formulas, number by number."""
    ours, theirs = (side.global_embeds.double().tolist() for side in (student, teacher))
    our_patches, their_patches = (side.patch_embeds.double().flatten(0, 1).tolist() for side in (student, teacher))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    if isinstance(distil, FeatureL1):
        return mean([abs(x - y) for s, t in zip(ours, theirs, strict=True) for x, y in zip(s, t, strict=True)])
    if isinstance(distil, CosineDistillation):
        return mean([1 - cosine(s, t) for s, t in zip(ours, theirs, strict=True)])
    if isinstance(distil, PatchDistillation):
        pairs = list(zip(our_patches, their_patches, strict=True))
        if distil.distance == "cosine":
            return mean([1 - cosine(s, t) for s, t in pairs])
        return mean([abs(x - y) for s, t in pairs for x, y in zip(s, t, strict=True)])
    if isinstance(distil, RelationalDistillation):
        total, size = 0.0, len(ours)
        for i in range(size):
            q_student, q_teacher = ([dot(side[i], side[j]) for j in range(size)] for side in (ours, theirs))
            total += sum(
                (a / length(q_student) - b / length(q_teacher)) ** 2 for a, b in zip(q_student, q_teacher, strict=True)
            )
        return total / size**2
    parts = {"feature": FeatureL1(), "cosine": CosineDistillation(), "relational": RelationalDistillation()}
    parts["patch"] = PatchDistillation()
    return sum(getattr(distil, key) * loop(part, student, teacher) for key, part in parts.items())


@every
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.integers(0, 1000))
def test_the_formula_in_a_plain_loop(distil, size, patches, dim, seed):
    student, teacher = features(seed, size, patches, dim), features(seed + 5000, size, patches, dim)
    assert float(distil(student, teacher)) == pytest.approx(loop(distil, student, teacher), abs=1e-5, rel=1e-4)


@every
@given(st.integers(1, 5), st.integers(0, 1000))
def test_nothing_is_nearer_to_the_teacher_than_itself(distil, size, seed):
    teacher, other = features(seed, size), features(seed + 5000, size)
    assert float(distil(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distil(other, teacher)) >= 0


@pytest.mark.parametrize("distil", [CosineDistillation(), PatchDistillation(), RelationalDistillation()], ids=name)
@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_directions_alone_are_compared(distil, factor, seed):
    student, teacher = features(seed), features(seed + 5000)
    larger = ImageFeatures(*(factor * part for part in student))
    torch.testing.assert_close(distil(larger, teacher), distil(student, teacher), atol=1e-5, rtol=1e-4)


@given(st.integers(0, 1000))
def test_relations_do_not_see_a_turn_of_the_whole_space(seed):
    student, teacher = features(seed), features(seed + 5000)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))).Q
    turned = ImageFeatures(student.global_embeds @ turn, student.patch_embeds)
    distil = RelationalDistillation()
    torch.testing.assert_close(distil(turned, teacher), distil(student, teacher), atol=1e-5, rtol=1e-4)
    assert distil(student, teacher) <= 4 / len(student.global_embeds)


@every
def test_gradient_by_finite_differences(distil):
    student, teacher = features(0, dtype=torch.float64), features(1, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in student]
    assert torch.autograd.gradcheck(lambda *parts: distil(ImageFeatures(*parts), teacher), leaves)


@every
def test_a_student_comes_nearer(distil):
    teacher = features(1)
    leaves = [part.requires_grad_() for part in features(0)]
    optimizer = torch.optim.SGD(leaves, lr=0.05)
    losses = []
    for _ in range(30):
        loss = distil(ImageFeatures(*leaves), teacher)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_one_image_has_no_relations():
    student = ImageFeatures(torch.randn(1, 6, requires_grad=True), torch.randn(1, 3, 6))
    loss = RelationalDistillation()(student, features(1, 1))
    loss.backward()
    assert float(loss) == 0
    assert student.global_embeds.grad.abs().max() < 1e-6


@new
def test_half_precision_is_computed_in_full(distil):
    student, teacher = features(0, 8, dtype=torch.bfloat16), features(1, 8, dtype=torch.bfloat16)
    full = [ImageFeatures(*(part.float() for part in side)) for side in (student, teacher)]
    expected = distil(*full)
    if not isinstance(distil, SumDistillation):  # of which MKT's own part is as it was
        assert distil(student, teacher).dtype == torch.float32
        torch.testing.assert_close(distil(student, teacher), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(distil(*full), expected)


@pytest.mark.parametrize("kind", [FeatureL1, CosineDistillation, RelationalDistillation, PatchDistillation])
def test_parts_of_weight_zero_are_not_computed(kind, monkeypatch):
    names = {FeatureL1: "feature", CosineDistillation: "cosine", RelationalDistillation: "relational"}
    weights = {"feature": 1.0, "cosine": 1.0, "relational": 1.0, "patch": 1.0, names.get(kind, "patch"): 0.0}
    monkeypatch.setattr(kind, "forward", lambda *_: pytest.fail("computed"))
    assert SumDistillation(**weights)(features(0), features(1)) > 0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: PatchDistillation("l2"), "PatchDistillation: distance must be 'cosine' or 'l1'; got 'l2'"),
        (lambda: SumDistillation(patch=-1), "patch must be 0 or greater, and finite; got -1"),
        (lambda: SumDistillation(cosine=math.nan), "cosine must be a finite number; got nan"),
        (lambda: SumDistillation(0), "all weights are 0; to turn distillation off give distillation_weight 0"),
    ],
)
def test_wrong_settings_end_in_one_line(make, text):
    with pytest.raises(UserError, match=text) as info:
        make()
    assert "\n" not in str(info.value)


# ---------------------------------------------------------------------- saved, loaded, trained


@every
def test_described_and_made_again(distil):
    again = build(json.loads(json.dumps(describe(distil))), Distillation, "here")
    student, teacher = features(0), features(1)
    assert torch.equal(again(student, teacher), distil(student, teacher))


def test_models_saved_when_it_was_one_module_load(tiny, tmp_path):
    assert isinstance(build({"class_path": "ovml.distillation.FeatureL1"}, Distillation, "here"), FeatureL1)
    OVMultiLabelClassifier(tiny, ["cat"]).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    config = json.loads(file.read_text())
    config["ovml"]["training"]["distillation"] = {"class_path": "ovml.distillation.FeatureL1", "init_args": {}}
    file.write_text(json.dumps(config))
    assert isinstance(OVMultiLabelClassifier.from_pretrained(tmp_path / "saved").objective.distillation, FeatureL1)


def test_a_model_saved_with_another_one_scores_the_same(tiny, tmp_path):
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], distillation=SumDistillation(0, 1, 2, 3)).eval()
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(model(pixels), again(pixels))
    assert describe(again.objective.distillation) == describe(model.objective.distillation)


def test_the_command_line_trains_with_new_parts(config, tmp_path):
    command = ["fit", "--config", config, *SMALL, "--model.clip", "ovml-demo"]
    command += [
        "--model.distillation",
        "ovml.distillation.SumDistillation",
        "--model.distillation.patch",
        "0.5",
    ]
    command += ["--model.prompt", "ovml.prompts.DualPrompt", "--model.prompt.num_context", "9"]
    assert main([*command, "--trainer.default_root_dir", str(tmp_path)]) == 0
    run = tmp_path / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "vision", "prompt"}
    again = OVMultiLabelClassifier.from_pretrained(run)
    assert (again.objective.distillation.feature, again.objective.distillation.patch) == (1.0, 0.5)
    assert again.model.prompt.present_context.shape[0] == 9
