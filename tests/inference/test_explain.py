"""Pictures of why a label was ranked where it was."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovml import OpenVocabularyModel, Tagger, UserError, load_model
from ovml.cli.main import command
from ovml.data.synthetic.scenes import draw_scene
from ovml.encoders import ImageFeatures
from ovml.encoders.image_processor import ImageProcessor
from ovml.heads import CosineHead, TwoStreamHead
from ovml.inference.explain import draw_explanation, explain
from ovml.inference.patches import PatchGrid, find_evidence
from ovml.metrics.plots.files import save_png
from ovml.utils.images import load_image

SPEC = ImageProcessor(48, (0.0,) * 3, (1.0,) * 3)
SIDE = 4  # patches of 12 pixels
SIZES = [(144, 96), (101, 160), (120, 120), (48, 48), (333, 77)]


def grid_of(size, resize=None):
    return PatchGrid.of(size, replace(SPEC, resize=resize), 12)


@pytest.fixture(scope="module")
def model():
    return OpenVocabularyModel("ovml-demo")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [None, 60])
@pytest.mark.parametrize("patch", [0, 6, 15])
def test_what_is_painted_on_a_patch_is_what_the_model_gets_in_that_patch(size, resize, patch):
    x0, y0, x1, y1 = grid_of(size, resize).patch_box(patch)
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[round(y0) : round(y1), round(x0) : round(x1)] = 255
    seen = replace(SPEC, resize=resize)(Image.fromarray(pixels))[0]
    in_patch = seen.reshape(SIDE, 12, SIDE, 12).mean(dim=(1, 3)).flatten()
    assert in_patch[patch] > 0.8  # edges fall between pixels
    assert in_patch.sum() - in_patch[patch] < 0.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [None, 60])
@pytest.mark.parametrize("patch", range(0, 16, 3))
def test_the_hottest_place_lies_in_the_one_patch_that_fits(size, resize, patch):
    embeds = torch.zeros(1, SIDE**2, 8)
    embeds[0, patch, 0] = 1
    features = ImageFeatures(torch.ones(1, 8), embeds)
    (found,) = find_evidence(features, torch.eye(8)[:1], ["here"], TwoStreamHead(top_k=1))
    assert found.patches == (patch,)
    grid = grid_of(size, resize)
    heat = grid.spread(found.similarity)
    assert heat.shape == (size[1], size[0])
    row, column = np.unravel_index(np.nanargmax(heat), heat.shape)
    x0, y0, x1, y1 = grid.patch_box(patch)
    assert x0 < column + 0.5 < x1
    assert y0 < row + 0.5 < y1
    outside = np.isnan(heat)
    x0, y0, x1, y1 = grid.box
    assert (~outside).sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.03)


@given(st.integers(2, 6), st.integers(1, 5), st.data())
def test_patches_and_scores_are_those_of_a_naive_reading(side, num_labels, data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    top_k = data.draw(st.integers(1, side**2))
    features = ImageFeatures(torch.randn(1, 5), torch.randn(1, side**2, 5))
    label_embeds = torch.randn(num_labels, 5)
    names = [f"label {i}" for i in range(num_labels)]
    head = TwoStreamHead(top_k)
    evidence = find_evidence(features, label_embeds, names, head)
    dots = (features.patch_embeds[0] @ label_embeds.T).double().numpy().T
    local = np.sort(dots, axis=1)[:, -top_k:].mean(axis=1)
    whole = (label_embeds @ features.global_embeds[0]).double().numpy()
    local, whole = local / np.linalg.norm(local), whole / np.linalg.norm(whole)
    order = np.argsort(-(local + whole))
    assert [found.label for found in evidence] == [names[i] for i in order]
    for i, found in zip(order, evidence, strict=True):
        assert found.patches == tuple(np.argsort(-dots[i])[:top_k])
        got = (found.local_score, found.global_score, found.score)
        assert got == pytest.approx((local[i], whole[i], (local[i] + whole[i]) / 2), abs=1e-5)


def test_a_head_without_patches_is_ranked_by_its_own_score():
    torch.manual_seed(0)
    features = ImageFeatures(torch.randn(1, 5), torch.randn(1, 196, 5))
    evidence = find_evidence(features, torch.randn(4, 5), "abcd", CosineHead(), top_k=3)
    assert [found.score for found in evidence] == sorted((found.score for found in evidence), reverse=True)
    assert [len(found.patches) for found in evidence] == [16] * 3


def test_the_scores_shown_are_those_of_the_tagger(model, monkeypatch):
    drawn = []
    monkeypatch.setattr(sys.modules[explain.__module__], "draw_explanation", lambda *args: drawn.extend(args[2]))
    labels, scene = ["red heart", "purple square", "green fish"], draw_scene(0, "pretrain", 474).image
    explain(model, scene, labels, top_k=2)
    expected = Tagger(model, labels, top_k=2).predict(scene)
    assert [found.label for found in drawn] == [tag.label for tag in expected]
    assert [found.score for found in drawn] == pytest.approx([tag.score for tag in expected], abs=1e-5)


@pytest.mark.parametrize("size", [(300, 40), (40, 300), (1000, 1000), (3, 5)])
def test_any_picture_and_any_name_can_be_drawn(model, size):
    labels = ["x" * 22, "name of many words, all rather long", "Gemüse", "一个", "$5 {cheap}\n"]
    picture = explain(model, Image.new("RGB", size, "teal"), labels)
    assert 600 < picture.width < 1200
    assert 100 < picture.height < 1200


def test_an_outline_is_drawn_round_the_patch():
    grid = grid_of((280, 280))
    features = ImageFeatures(torch.ones(1, 2), torch.zeros(1, 16, 2))
    features.patch_embeds[0, 5] = 1
    evidence = find_evidence(features, torch.ones(1, 2), ["here"], TwoStreamHead(top_k=1))
    pixels = np.asarray(draw_explanation(Image.new("RGB", (280, 280)), grid, evidence))
    panel = pixels[20:300, 324:604]  # the second cell
    white = np.argwhere((panel == 255).all(axis=2))
    assert white.min(axis=0) == pytest.approx([70, 70], abs=2)  # patch 5 of 4 x 4: second row, second column
    assert white.max(axis=0) == pytest.approx([140, 140], abs=2)


def test_the_command_writes_a_picture(tmp_path, picture, capsys):
    out = tmp_path / "new" / "why.png"
    command("explain")([str(picture), "--labels", "red heart,blue star", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > 800
    assert list(out.parent.iterdir()) == [out]


def test_options_of_the_command_are_those_of_the_function(tmp_path, picture):
    labels, shown = ["red heart", "blue star", "green fish"], load_image(picture)
    cases = {(): {}, ("--top-k", "1"): {"top_k": 1}, ("--prompt", "no {}"): {"prompt": ["no {}"]}}
    drawn = []
    for options, arguments in cases.items():
        out = tmp_path / "why.png"
        command("explain")([str(picture), "--labels", ",".join(labels), "--out", str(out), *options])
        with Image.open(out) as image:
            drawn.append(np.asarray(image.convert("RGB")))
        plain = {"top_k": 8, **arguments}
        assert np.array_equal(
            drawn[-1], np.asarray(explain(load_model("ovml-demo"), shown, labels, **plain).convert("RGB"))
        )
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "a.png"
    out.write_bytes(b"before")

    def full(self, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_png(Image.new("RGB", (2, 2)), out)
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: IMAGE"),
        (["{picture}"], "no labels"),
        (["{picture}", "--labels", "a,a"], "is repeated"),
        (["{picture}", "--labels", "a", "--top-k", "0"], "at least 1"),
        (["{picture}", "--labels", "a", "--out", "x.jpg"], "end in .png"),
        (["{picture}", "--labels", "a", "--out", "{picture}"], "is the image itself"),
        (["{picture}", "--labels", "a", "--font", "{picture}", "--out", "{folder}/x.png"], "not a font"),
        (["{picture}", "--labels", "a", "--labels-file", "b"], "not allowed with"),
        (["{folder}/none.png", "--labels", "a"], "no such file"),
        (["{folder}", "--labels", "a"], "is a folder"),
    ],
)
def test_bad_input_is_one_line(arguments, message, picture, tmp_path):
    filled = [a.format(picture=picture, folder=tmp_path) for a in arguments]
    with pytest.raises(UserError, match=message) as error:
        command("explain")([*filled])
    assert "\n" not in str(error.value)
