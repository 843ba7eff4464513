"""`ovml adapt`, and `--scoring` of the commands that score: run as a person runs them."""

import json
import re

import pytest
from commands import ovml_here
from PIL import Image

from ovml import OpenVocabularyModel, Tagger, load_model
from ovml.cli.app.ranking import Ranker
from ovml.cli.app.visit import Asked, Events, Visit
from ovml.saving import save_model
from ovml.vocabulary import LabelVocabulary

LABELS = "cat,dog,bee,owl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight images, one that is broken, and a file that is none."""
    folder = tmp_path_factory.mktemp("pool") / "photos"
    folder.mkdir()
    for number in range(8):
        picture = Image.effect_mandelbrot((60, 50), (-2, -1.5, 1 + number / 5, 1.5), 50).convert("RGB")
        picture.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def adapt(folder, tiny, tmp_path, capsys):
    """Adapt the tiny CLIP; the result goes to `tmp_path / "model"`."""

    def run(*options, images=folder, labels=("--labels", LABELS)):
        out = [] if "--out" in options else ["--out", str(tmp_path / "model")]
        code = ovml_here("adapt", str(images), "--model", tiny, *labels, *out, *options)
        return code, capsys.readouterr()

    return run


def error(said):
    (line,) = (line for line in said.err.splitlines() if line.startswith("ovml: error: "))
    return line.removeprefix("ovml: error: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "scoring piaa: one pass an image, and a block again; fitted on images without labels"),
        (["--scoring", "sparc"], "scoring sparc: one pass an image; fitted on images without labels"),
        (["--scoring", "cosine"], "scoring cosine: one pass an image"),
        (["--scoring", "my_parts.MaxPatchHead"], "scoring my_parts.MaxPatchHead: a head of your own"),
    ],
)
def test_an_adapted_model_tags_by_its_own_threshold(options, said, adapt, folder, tmp_path, capsys):
    code, printed = adapt("--expected", "1.5", *options)
    assert code == 0
    assert f"ovml: {said}\n" in printed.err
    assert "passed over in folders: 1 .txt" in printed.err
    assert "fitted for 4 labels on 8 images of photos, without labels; 1 could not be read\n" in printed.out
    assert re.search(r"^threshold -?[\d.e-]+: 1.5 labels of an image reach it, on average$", printed.out, re.MULTILINE)
    out = str(tmp_path / "model")
    assert printed.out.endswith(f"saved: {out}\ntag: ovml tag IMAGE --model {out} --threshold auto\n")
    rows = tmp_path / "tags.jsonl"
    images = [str(folder / f"{number}.png") for number in range(8)]
    assert ovml_here("tag", *images, "--model", out, "--threshold", "auto", "--out", str(rows)) == 0
    found = [len(json.loads(line)["labels"]) for line in rows.read_text().splitlines()]
    assert abs(sum(found) - 12) <= 1
    assert ovml_here("explain", images[0], "--model", out, "--out", str(tmp_path / "why.png")) == 0
    capsys.readouterr()


def test_a_trained_model_takes_a_threshold_alone(folder, tiny, tmp_path, capsys):
    save_model(OpenVocabularyModel(tiny, ["cat", "dog"]).eval(), tmp_path / "saved")
    command = ["adapt", str(folder), "--model", str(tmp_path / "saved"), "--out", str(tmp_path / "model")]
    assert ovml_here(*command) == 2
    assert "head: a TwoStreamHead is not fitted on images without labels" in error(capsys.readouterr())
    assert ovml_here(*command, "--scoring", "piaa") == 2
    assert "saved keeps the head that it was saved with; leave it out" in error(capsys.readouterr())
    assert ovml_here(*command, "--expected", "1") == 0
    assert "fitted for 2 labels on 8 images of photos" in capsys.readouterr().out
    tagger = Tagger(load_model(tmp_path / "model"), threshold="auto", num_workers=0)
    assert sum(len(tagger.predict(str(folder / f"{number}.png"))) for number in range(8)) == pytest.approx(8, abs=1)


def test_compound_prompts_come_from_a_file_or_from_captions(adapt, tmp_path):
    captions, prompts = tmp_path / "captions.csv", tmp_path / "prompts.txt"
    captions.write_text("image,caption\n" + '1.jpg,"a dog, and two cats"\n2.jpg,cats and dogs\n3.jpg,an owl\n')
    code, printed = adapt("--captions", str(captions))
    assert code == 0
    assert "1 compound prompts of 3 captions: cat and dog" in printed.err
    assert load_model(tmp_path / "model").head.prompts == ("cat and dog",)
    prompts.write_text("a cat and a dog\nan owl above a bee\n")
    assert adapt("--compound-prompts", str(prompts), "--scoring", "sparc", "--overwrite")[0] == 0
    assert load_model(tmp_path / "model").head.prompts == ("a cat and a dog", "an owl above a bee")
    captions.write_text("caption\na dog\nan owl\n")
    code, printed = adapt("--captions", str(captions), "--overwrite")
    assert code == 2
    assert "no two labels are named together in more than one of 2 captions" in error(printed)
    assert adapt("--captions", str(captions), "--scoring", "piaa", "--overwrite")[0] == 2


def test_the_model_card_tells_the_images_of_the_last_fit(adapt, folder, tmp_path):
    assert adapt()[0] == 0
    assert "| fitted on | 8 images of photos, without labels" in (tmp_path / "model" / "README.md").read_text()
    few = tmp_path / "few"
    few.mkdir()
    for number in (1, 5, 7):
        (few / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    assert adapt("--overwrite", images=few)[0] == 0
    assert "| fitted on | 3 images of few, without labels (" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scoring", "pia"], "--scoring: no scoring 'pia'; did you mean piaa?"),
        (["--scoring", "surgery"], "--scoring surgery: has nothing to fit; give --expected N for a threshold, or "),
        (["--expected", "0"], "--expected: expected a number above 0, got '0'"),
        (["--expected", "5"], "--expected must be above 0 and at most 4, the number of labels; got 5"),
        (["--captions", "no.txt"], "--captions no.txt: no such file"),
        (["--captions", "a.txt", "--compound-prompts", "b.txt"], "not allowed with"),
        (["--labels", "cat"], "--labels: this head compares labels with one another; give two or more"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(options, message, adapt, tmp_path):
    labels = () if "--labels" in options else ("--labels", LABELS)
    code, printed = adapt(*options, labels=labels)
    assert code == 2
    assert message in error(printed)
    assert not (tmp_path / "model").exists()


def test_pools_that_tell_nothing(adapt, folder, tmp_path):
    for name, message in (
        ("0.png", "images: 1 is too few to fit on"),
        ("broken.png", "images: 0 are too few to fit on, 1 could not be read"),
        ("none", "none: no such file or folder"),
    ):
        code, printed = adapt(images=folder / name)
        assert code == 2
        assert message in error(printed)
    assert not (tmp_path / "model").exists()


def test_another_folder_is_left_alone(adapt, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("dear diary")
    code, printed = adapt("--out", str(other), "--overwrite")
    assert code == 2
    assert "holds other files; give a new or empty folder" in error(printed)
    assert adapt()[0] == 0
    code, printed = adapt()
    assert code == 2
    assert "exists already; give another name, or use --overwrite" in error(printed)


def test_tag_names_a_scoring_and_what_it_costs(folder, tiny, tmp_path, capsys):
    image = str(folder / "0.png")
    command = ["tag", image, "--model", tiny, "--labels", LABELS, "--format", "jsonl"]
    expected = {}
    for name in ("cosine", "standardized", "surgery", "patches"):
        assert ovml_here(*command, "--scoring", name) == 0
        printed = capsys.readouterr()
        assert f"ovml: scoring {name}: one pass an image" in printed.err
        expected[name] = json.loads(printed.out)["labels"]
        tags = Tagger(load_model(tiny, scoring=name), LABELS.split(","), num_workers=0).predict(image)
        assert [tag["label"] for tag in expected[name]] == [tag.label for tag in tags]
    assert ovml_here(*command) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == expected["cosine"]
    for options, message in (
        (
            ["--scoring", "piaa"],
            "--scoring piaa: is fitted on images without labels first: ovml adapt FOLDER --scoring piaa",
        ),
        (["--threshold", "auto"], "--threshold: auto needs a threshold of the model's own; run 'ovml adapt'"),
        (["--threshold", "much"], "expected a number or 'calibrated' or 'auto', got 'much'"),
    ):
        assert ovml_here(*command, *options) == 2
        assert message in error(capsys.readouterr())


def test_visitors_of_the_page_choose_the_scoring_of_a_plain_clip(folder, tiny):
    model = load_model(tiny, labels=LABELS.split(","))
    ranker, vocabulary, image = Ranker(model), LabelVocabulary(tuple(LABELS.split(","))), str(folder / "0.png")
    assert ranker.scorings == ["cosine", "standardized", "surgery", "patches", "tagclip"]
    for name in ranker.scorings:
        expected = Tagger(load_model(tiny, scoring=name), vocabulary, num_workers=0).predict(image)
        ranking = ranker.rank(image, vocabulary, scoring=name)
        assert list(ranking.scores) == expected
        assert ranker.find(ranking, expected[0].label)[2].score == pytest.approx(expected[0].score, abs=1e-5)
    assert ranker.rank(image, vocabulary, scoring="<b>") == ranker.rank(image, vocabulary, scoring="<b>")
    assert list(ranker.rank(image, vocabulary, scoring="<b>").scores) == list(ranker.rank(image, vocabulary).scores)
    visit, events = Visit(), Events(ranker, {})
    visit.add([image])
    found = [events.rank(visit, Asked(LABELS, scoring=name)) for name in ("cosine", "patches")]
    assert found[0] != found[1]
    trained = OpenVocabularyModel(tiny, ["cat", "dog"]).eval()
    assert not Ranker(trained).scorings


def test_the_page_has_the_choice_for_a_plain_clip_alone(tiny):
    gradio = pytest.importorskip("gradio")
    from ovml.cli.app.page import build_page

    def choices(model):
        page = build_page(Events(Ranker(model), {}))
        return [b.label for b in page.blocks.values() if isinstance(b, gradio.Dropdown)]

    assert choices(load_model(tiny)) == ["Or a vocabulary", "Scoring"]
    assert choices(OpenVocabularyModel(tiny)) == ["Or a vocabulary"]
