import io
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovml import LabelVocabulary, OpenVocabularyModel, Tagger, UserError
from ovml.encoders.image_processor import Preprocessing
from ovml.heads import CosineHead, LocalHead
from ovml.metrics.calibration import Calibration
from ovml.prompts import ContextPrompt, TemplatePrompt
from ovml.utils.images import load_image

LABELS = ("cat", "dog", "red car", "sky", "black cat")


@pytest.fixture(scope="module")
def model(tiny):
    torch.manual_seed(0)
    return OpenVocabularyModel(tiny, LABELS, head=LocalHead(top_k=2)).eval()


@pytest.fixture
def pictures(tmp_path):
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(path)
    return paths


def naive(model, picture, label_embeds, top_k, threshold=-1e9):
    """One picture by itself, labels sorted in Python."""
    pixels = model.image_processor(load_image(picture))[None]
    with torch.no_grad():
        scores = model.head(model.image_encoder(pixels), label_embeds)[0].tolist()
    ranked = sorted(zip(LABELS, scores, strict=True), key=lambda pair: -pair[1])
    return [(label, score) for label, score in ranked[:top_k] if score >= threshold]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_tags_are_those_of_each_picture_alone(model, pictures, num_workers, batch_size):
    tagger = Tagger(model, top_k=3, batch_size=batch_size, num_workers=num_workers)
    tagged = list(tagger.tag(iter(pictures)))
    assert [image for image, _ in tagged] == pictures
    for image, tags in tagged:
        expected = naive(model, image, model.embed_labels(), 3)
        assert [tag.label for tag in tags] == [label for label, _ in expected]
        np.testing.assert_allclose([tag.score for tag in tags], [score for _, score in expected], atol=1e-5)


def test_a_threshold_keeps_the_scores_that_reach_it(model, pictures):
    scores = sorted(tag.score for _, tags in Tagger(model, top_k=None).tag(pictures) for tag in tags)
    least = scores[len(scores) // 2]
    tagged = [tags for _, tags in Tagger(model, top_k=None, threshold=least).tag(pictures)]
    assert sorted(tag.score for tags in tagged for tag in tags) == [score for score in scores if score >= least]
    for image, tags in Tagger(model, top_k=2, threshold=least).tag(pictures):
        assert [tag.label for tag in tags] == [n for n, _ in naive(model, image, model.embed_labels(), 2, least)]
    assert all(tags == [] for _, tags in Tagger(model, threshold=1e9).tag(pictures))


def test_templates_take_the_place_of_the_models_prompt_and_are_averaged(model, pictures):
    templates = ["a photo of a {}", "{} outdoors"]
    with torch.no_grad():
        texts = [model.prompt.text_encoder([t.replace("{}", label) for label in LABELS]) for t in templates]
    for prompt in (templates, TemplatePrompt(templates)):
        tagger = Tagger(model, top_k=2, prompt=prompt)
        torch.testing.assert_close(tagger.label_embeds(), (texts[0] + texts[1]) / 2)
        for image, tags in tagger.tag(pictures):
            expected = naive(model, image, (texts[0] + texts[1]) / 2, 2)
            assert [tag.label for tag in tags] == [label for label, _ in expected]
    torch.testing.assert_close(Tagger(model, prompt=templates[0]).label_embeds(), texts[0])
    with pytest.raises(UserError, match=r"template 'a photo' must hold \{\}"):
        Tagger(model, prompt="a photo")


def test_labels_are_embedded_once(model, pictures):
    class Counting(TemplatePrompt):
        calls = 0

        def embed(self, names):
            self.calls += 1
            return super().embed(names)

    prompt = Counting("a {}")
    tagger = Tagger(model, prompt=prompt, batch_size=2)
    for _ in range(2):
        list(tagger.tag(pictures))
    assert prompt.calls == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_million_pictures_are_asked_for_as_they_are_needed(model, pictures, num_workers):
    asked = 0

    def stream():
        nonlocal asked
        for asked in range(1, 10**6):
            yield pictures[asked % 7]

    tagged = Tagger(model, batch_size=4, num_workers=num_workers).tag(stream())
    assert len(list(itertools.islice(tagged, 12))) == 12
    tagged.close()
    assert asked <= 12 + 2 * 4
    assert threading.active_count() < 20


def test_pictures_are_read_while_the_model_runs(model, pictures, monkeypatch):
    tagger = Tagger(model, batch_size=2, num_workers=1)
    next_batch_is_read = threading.Event()
    read, rank = tagger._read, tagger._rank

    def watched_read(image):
        pixels = read(image)
        if image == pictures[3]:
            next_batch_is_read.set()
        return pixels

    def watched_rank(*arguments):
        assert next_batch_is_read.wait(60)
        return rank(*arguments)

    monkeypatch.setattr(tagger, "_read", watched_read)
    monkeypatch.setattr(tagger, "_rank", watched_rank)
    assert len(list(tagger.tag(pictures))) == len(pictures)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_cannot_be_read_raises_or_is_a_row(model, pictures, tmp_path, num_workers, monkeypatch):
    text, none = tmp_path / "text.png", tmp_path / "none.png"
    text.write_text("no image")
    images = [pictures[0], text, pictures[1], none, tmp_path, b"no image", pictures[2]]
    tagger = Tagger(model, batch_size=3, num_workers=num_workers)
    tagged = list(tagger.tag(images, on_error="row"))
    assert [image for image, _ in tagged] == images
    lost = {i: str(result) for i, (_, result) in enumerate(tagged) if isinstance(result, UserError)}
    assert list(lost) == [1, 3, 4, 5]
    assert "text.png: not an image" in lost[1]
    assert "none.png: no such file" in lost[3]
    good = list(tagger.tag(pictures[:3]))
    assert [tags for i, (_, tags) in enumerate(tagged) if i not in lost] == [
        [(label, pytest.approx(score, abs=1e-5)) for label, score in tags] for _, tags in good
    ]
    rows = tagger.tag(images)
    assert next(rows)[0] == pictures[0]
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        next(rows)
    assert all(isinstance(result, UserError) for _, result in tagger.tag([none, text], on_error="row"))

    def fail(_):
        raise IndexError("bytes")

    monkeypatch.setattr(tagger, "transform", fail)
    with pytest.raises(UserError, match=r"0\.png: broken image \(IndexError: bytes\)") as raised:
        list(tagger.tag(pictures))
    assert isinstance(raised.value.__cause__, IndexError)


def test_an_error_of_the_stream_of_pictures_is_not_hidden(model, pictures):
    def stream():
        yield from pictures[:5]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(Tagger(model, batch_size=2).tag(stream()))


class Dropping(CosineHead):
    """A head that is another one in training."""

    def forward(self, features, label_embeds):
        return super().forward(features, label_embeds) * (0 if self.training else 1)


def test_a_model_in_training_tags_as_it_does_afterwards(tiny, pictures):
    model = OpenVocabularyModel(tiny, LABELS, head=Dropping()).train()
    scores = Tagger(model).score(pictures)
    assert scores.any()
    assert model.head.training
    assert torch.equal(Tagger(model.eval()).score(pictures), scores)
    assert not scores.requires_grad


def test_the_model_stays_in_its_mode(model, pictures):
    model.train()
    list(Tagger(model).tag(pictures))
    assert model.training
    model.eval()
    list(Tagger(model).tag(pictures))
    assert not model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0; got -1"),
        ({"threshold": float("nan")}, "threshold must be a finite number; got nan"),
        ({"threshold": float("inf")}, "threshold must be a finite number; got inf"),
        ({"labels": ["cat", "Cat"]}, "differ only in case"),
        ({"prompt": []}, "templates: the list is empty"),
    ],
)
def test_bad_arguments_are_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        Tagger(model, **arguments)


def test_scores_that_cannot_be_ranked_are_no_tags(tiny, pictures):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    next(model.image_encoder.parameters()).data.fill_(torch.nan)
    for call in (lambda: list(Tagger(model).tag(pictures, on_error="row")), lambda: Tagger(model).score(pictures)):
        with pytest.raises(UserError, match="NaN for image 0 of the batch and label 0 .35 in all.; the weights are"):
            call()


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (3, 3), (64, 8)])
def test_one_thread_per_core_and_at_most_eight_read_images(model, monkeypatch, cores, threads):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert Tagger(model).num_workers == threads
    assert Tagger(model, num_workers=2).num_workers == 2


ONE = ["x.png", Path("x.png"), b"x", Image.new("RGB", (4, 4)), io.BytesIO(b"x"), np.ones((4, 4)), torch.ones(3, 4, 4)]


@pytest.mark.parametrize("image", ONE, ids=lambda image: type(image).__name__)
def test_one_image_is_not_taken_for_several(model, image):
    with pytest.raises(UserError, match=r"images: expected several images, got one; write \[image\]"):
        next(Tagger(model).tag(image))


def test_images_of_several_kinds_have_the_tags_of_the_file(model, pictures, tmp_path):
    path = pictures[0]
    array = np.asarray(load_image(path))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    tagger = Tagger(model, top_k=3)
    with path.open("rb") as file, path.open("rb") as again:
        images = [path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, load_image(path), array]
        images += [array / 255, tensor, tensor / 255]
        tagged = tagger.predict(images)
        assert tagged == [tagger.predict(path)] * len(images)
        assert tagger.predict(tensor) == tagger.predict(again) == tagged[0]
        assert [tags for _, tags in tagger.tag(torch.stack([tensor] * 2))] == tagged[:2]
    (tmp_path / "bad.png").write_text("no image")
    for bad in (tmp_path / "bad.png", io.BytesIO(b"no image"), torch.ones(4), "http://localhost/a.png"):
        with pytest.raises(UserError):
            tagger.predict([bad])
        ((_, error),) = tagger.tag([bad], on_error="row")
        assert isinstance(error, UserError)


def test_settings_tell_apart_all_that_the_result_depends_on(tiny):
    torch.manual_seed(0)

    def tagger(change=lambda model: None, head=None, prompt=None, tag_prompt=None, labels=LABELS, **arguments):
        model = OpenVocabularyModel(tiny, labels, head=head, prompt=prompt)
        with torch.no_grad():
            change(model)
        return Tagger(model, prompt=tag_prompt, **arguments)

    first = tagger().settings()
    assert first == tagger(batch_size=2, num_workers=0).settings()
    others = {
        "model vision": tagger(lambda model: model.image_encoder.visual_projection.weight[0, 0].add_(1e-6)),
        "model head": tagger(head=CosineHead()),
        "model head size": tagger(head=LocalHead(top_k=3)),
        "prompt context": tagger(lambda model: model.prompt.context[0, 0].add_(1e-6)),
        "prompt template": tagger(prompt=ContextPrompt("a {}")),
        "prompt templates": tagger(tag_prompt=["a {}", "the {}"]),
        "prompt one": tagger(tag_prompt="a {}"),
        "labels": tagger(labels=LABELS[::-1]),
        "top_k": tagger(top_k=2),
        "threshold": tagger(threshold=0.1),
    }
    seen = [first]
    for what, other in others.items():
        settings = other.settings()
        assert settings not in seen
        assert [name for name in first if settings[name] != first[name]] == [what.split()[0]], what
        seen.append(settings)


def test_a_matrix_of_scores_has_the_numbers_of_the_ranking(model, pictures, tmp_path):
    images, names = [*pictures, *pictures[:2]], ("b", "a", "c d")
    tagger = Tagger(model, names, top_k=None, batch_size=2)
    scores = tagger.score(iter(images))
    assert scores.shape == (len(images), 3)
    for row, ranked in zip(scores.tolist(), tagger.predict(images), strict=True):
        assert dict(zip(names, row, strict=True)) == dict(ranked)
    assert tagger.score([]).shape == (0, 3)
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match=r"bad\.png"):
        tagger.score([images[0], tmp_path / "bad.png"])
    with pytest.raises(UserError, match="expected several images, got one"):
        tagger.score(images[0])


def test_settings_tell_apart_texts_image_processors_and_calibrations(tiny):
    def settings(texts=("bank", "cat"), preprocessing=None, calibration=None):
        vocabulary = LabelVocabulary(("bank (/m/1)", "cat"), texts=texts)
        model = OpenVocabularyModel(tiny, vocabulary, preprocessing=preprocessing)
        model.calibration = None if calibration is None else Calibration(*calibration, vocabulary)
        return Tagger(model, probabilities=calibration is not None).settings()

    first, calibrated = settings(), settings(calibration=(2.0, -1.0, 0.5))
    assert first == settings()
    assert calibrated == settings(calibration=(2.0, -1.0, 0.5))
    others = [
        settings(texts=("river bank", "cat")),
        *(
            settings(preprocessing=Preprocessing(**one))
            for one in ({"resize": 60}, {"squash": True}, {"mean": (0.1,) * 3})
        ),
        calibrated,
        settings(calibration=(2.5, -1.0, 0.5)),
        settings(calibration=(2.0, -1.5, 0.5)),
        settings(calibration=(2.0, -1.0, 0.6)),
    ]
    assert len({json.dumps(found, sort_keys=True) for found in (first, *others)}) == 1 + len(others)
