"""The web page's gallery: a folder's images, thumbnails, and what happens at a click."""

import io
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ovml import LabelVocabulary, OpenVocabularyModel, Tagger, UserError
from ovml.cli.app.gallery import PAGE
from ovml.cli.app.markup import NO_LABELS, NO_PICTURE, NOT_RANKED_YET, RANKING
from ovml.cli.app.pictures import SMALL, Album, Thumbnails, open_picture
from ovml.cli.app.ranking import TAGS, Ranker, Ranking
from ovml.cli.app.start import start
from ovml.cli.app.uploads import THUMBNAILS
from ovml.cli.app.visit import AT_ONCE, MOST_UPLOADS, SKIP, TYPED, Asked, Events, Visit
from ovml.cli.main import command
from ovml.data.synthetic.scenes import LABELS
from ovml.inference.tagger import LabelScore


def picture(path, colour="red", size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.png", "a.jpg", "2023/c d.png", "2023/<i>.png"):
        picture(folder / name)
    (folder / "notes.txt").write_text("text")
    return folder


# ---------------------------------------------------------------------- the folder


def test_a_folders_images_are_found_by_name(folder):
    album = Album(folder)
    assert [album.name(i) for i in range(len(album))] == ["<i>.png", "c d.png", "a.jpg", "b.png"]
    assert album[1] == str(folder / "2023" / "c d.png")


def test_links_out_of_the_folder_and_hidden_files_are_not_shown(folder, tmp_path, capsys):
    outside = picture(tmp_path / "secret.png")
    (folder / "out.png").symlink_to(outside)
    (folder / "up.png").symlink_to(Path("..") / "secret.png")
    (folder / "in.png").symlink_to(folder / "b.png")
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "tree").symlink_to(tmp_path, target_is_directory=True)
    picture(folder / ".hidden.png")
    os.mkfifo(folder / "pipe.png")
    album = Album(folder)
    assert [album.name(i) for i in range(len(album))] == ["<i>.png", "c d.png", "a.jpg", "b.png", "in.png"]
    assert "links to files outside of the folder are not shown; left out 2" in capsys.readouterr().err


def test_a_folder_behind_a_link_is_shown(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert len(Album(tmp_path / "link")) == 4


def test_a_file_that_becomes_a_link_out_of_the_folder_is_not_read(folder, tmp_path):
    album = Album(folder)
    for change in (lambda path: path.symlink_to(picture(tmp_path / "secret.png")), lambda path: None):
        (folder / "a.jpg").unlink()
        change(folder / "a.jpg")
        with pytest.raises(UserError, match=r"^a\.jpg: no longer an image of the folder"):
            album[2]


def test_a_large_folder_is_cut(folder, capsys):
    assert len(Album(folder, most=3)) == 3
    assert "shows the first 3 images" in capsys.readouterr().err


def test_nothing_in_the_folder_changes(folder):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}

    before = state()
    events, visit = Events(Stub(), {}, Album(folder)), Visit()
    list(events.tag(visit, Asked("moon")))
    events.choose(visit, 0)
    events.rank(visit, Asked("moon"))
    assert state() == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_bytes(b""), "no such folder"),
        (lambda path: path.mkdir(), "no images in this folder"),
        (lambda path: (path.mkdir(), (path / "a.png").symlink_to("/bin/sh")), "links that leave the folder"),
    ],
)
def test_a_folder_without_images_is_one_line_before_the_model_loads(tmp_path, make, message, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs gradio")
    make(tmp_path / "photos")
    monkeypatch.setattr("ovml.cli.models.chosen_model", None)
    with pytest.raises(UserError, match=message) as raised:
        command("app")(["--port", "0", "--images", str(tmp_path / "photos")])
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- thumbnails


def test_a_thumbnail_is_small_and_its_name_tells_nothing(folder):
    path = str(picture(folder / "large.png", size=(2000, 1000)))
    thumbnails = Thumbnails()
    name = thumbnails.name(path)
    assert thumbnails.name(path) == name
    assert Thumbnails().name(path) != name
    with Image.open(io.BytesIO(thumbnails.read(name))) as image:
        assert (image.format, image.size) == ("JPEG", (SMALL, SMALL // 2))
    picture(folder / "large.png", "blue", (1000, 2000))
    assert thumbnails.name(path) != name


def test_a_bounded_number_of_thumbnails_is_kept(folder):
    thumbnails = Thumbnails(most=2)
    names = [thumbnails.name(Album(folder)[i]) for i in (0, 1, 0, 2)]
    assert [thumbnails.read(name) is not None for name in names] == [True, False, True, True]
    assert thumbnails._draw.cache_info().maxsize == 2


def test_a_thumbnail_of_what_is_no_image_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    thumbnails = Thumbnails()
    name = thumbnails.name(str(tmp_path / "a.png"))
    assert thumbnails.read(name) is None
    (tmp_path / "a.png").unlink()
    assert thumbnails.read(name) is None


def test_an_image_is_read_once_to_be_shown_ranked_and_explained(folder, monkeypatch):
    reads = Counter()
    load = open_picture.__globals__["load_image"]
    monkeypatch.setitem(
        open_picture.__globals__, "load_image", lambda path, *args: reads.update([path]) or load(path, *args)
    )
    ranker = Ranker(OpenVocabularyModel("ovml-demo"))
    events, visit = Events(ranker, {}, Album(folder)), Visit()
    events.choose(visit, 2)
    events.rank(visit, Asked("moon, fish"))
    events.find(visit, 1)
    assert list(reads.values()) == [1]


# ---------------------------------------------------------------------- what happens at a click


class Stub:
    """Finds its own labels, and counts what it ranks."""

    calibrated, scorings = False, ()

    def __init__(self):
        self.ranked = []
        self.meanwhile = lambda: None

    def rank(self, image, vocabulary, probabilities, scoring=""):
        self.ranked.append(Path(image).name)
        open_picture(image)
        self.meanwhile()
        return Ranking(image, vocabulary, [LabelScore(name, 0.5) for name in vocabulary])

    def embed(self, vocabulary, probabilities, scoring=""):
        pass

    def best(self, image, vocabulary, probabilities, scoring=""):
        return self.rank(image, vocabulary, probabilities).scores[:TAGS]


def test_typed_labels_a_vocabulary_or_nothing_is_ranked(folder):
    stub = Stub()
    events, visit = Events(stub, {"shapes (2)": LabelVocabulary(("moon", "ring"))}, Album(folder)), Visit()
    assert events.rank(visit, Asked("a")) == NOT_RANKED_YET
    assert events.choose(visit, 2)[1] == RANKING
    assert events.rank(visit, Asked(" ,\n")) == NO_LABELS
    assert "differ only in case" in events.rank(visit, Asked("a, A"))
    assert "1 label ranked." in events.rank(visit, Asked("a"))
    assert "2 labels ranked (shapes)." in events.rank(visit, Asked("a", "shapes (2)"))
    assert "1 label ranked." in events.rank(visit, Asked("a", "none of them"))
    assert stub.ranked == ["a.jpg"] * 3


@pytest.mark.parametrize("number", [None, -1, 4, 10**9, -(10**9)])
def test_numbers_that_the_page_did_not_offer_change_nothing(folder, number):
    events, visit = Events(Stub(), {}, Album(folder)), Visit()
    assert events.choose(visit, number) == (NO_PICTURE, NOT_RANKED_YET)
    events.turn_page(visit, number)
    assert (visit.chosen, visit.first) == (None, 0)


def test_a_ranking_that_comes_after_another_choice_is_not_shown(folder):
    stub = Stub()
    events, visit = Events(stub, {}, Album(folder)), Visit()
    events.choose(visit, 0)
    stub.meanwhile = lambda: events.choose(visit, 1)
    assert events.rank(visit, Asked("a")) == SKIP
    assert visit.ranking is None


def test_uploads_come_before_the_folder_the_newest_first(folder, tmp_path):
    events, visit = Events(Stub(), {}, Album(folder)), Visit()
    for names in (["1"], ["2", "3"], ["1"]):
        image, waiting = events.add([str(picture(tmp_path / f"{name}.png")) for name in names], visit)
        assert f"The image {names[0]}.png" in image
        assert waiting == RANKING
    assert [Path(visit.uploads[number]).stem for number in sorted(visit.uploads)] == ["1", "2", "3"]
    *_, last = events.tag(visit, Asked("moon"))
    shown = [last.index(f">{name}<") for name in ("1.png", "2.png", "3.png", "&lt;i&gt;.png", "b.png")]
    assert shown == sorted(shown)
    assert last.count('aria-pressed="true"') == 1
    assert events.add([], visit)[1] == RANKING


def test_a_visitors_uploads_are_counted(tmp_path):
    visit = Visit()
    for i in range(MOST_UPLOADS + 5):
        visit.add([f"{i}.png"])
    assert len(visit.uploads) == MOST_UPLOADS
    assert Path(visit.uploads[visit.chosen]).stem == str(MOST_UPLOADS + 4)


def test_one_upload_is_no_gallery(tmp_path):
    events, visit = Events(Stub(), {}), Visit()
    assert list(events.tag(visit, Asked("a"))) == [""]
    events.add([str(picture(tmp_path / "1.png"))], visit)
    assert list(events.tag(visit, Asked("a"))) == [""]


def test_an_upload_that_is_gone_is_said(tmp_path):
    events, visit = Events(Stub(), {}), Visit()
    path = picture(tmp_path / "1.png")
    events.add([str(path)], visit)
    path.unlink()
    assert "1.png: no such file any more; upload it again" in events.rank(visit, Asked("a"))
    assert "1.png: no such file any more; upload it again" in events.show(visit)[1]
    visit.uploads.clear()
    assert "not kept any more; upload it again" in events.rank(visit, Asked("a"))


def test_tags_come_a_few_at_a_time_until_others_are_asked_for(tmp_path):
    for i in range(2 * AT_ONCE + 1):
        picture(tmp_path / f"{i}.png")
    stub = Stub()
    events, visit = Events(stub, {}, Album(tmp_path)), Visit()
    drawn = list(events.tag(visit, Asked("moon")))
    assert [html.count("ovml-tag") for html in drawn] == [0, AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE + 1]
    assert all(html.count(f'src="{THUMBNAILS}/') == 2 * AT_ONCE + 1 for html in drawn)
    stub.ranked.clear()
    tags = events.tag(visit, Asked("fish"))
    next(tags)
    next(tags)
    events.rank(visit, Asked("ring"))
    assert list(tags) == []
    assert len(stub.ranked) == AT_ONCE + 1


def test_without_labels_the_gallery_has_no_tags(folder):
    events = Events(Stub(), {}, Album(folder))
    for text in ("", "a, A"):
        (html,) = events.tag(Visit(), Asked(text))
        assert html.count("ovml-tile") == 5
        assert "ovml-tag" not in html


def test_a_label_that_is_too_long_is_said_once(folder):
    events, visit = Events(Ranker(OpenVocabularyModel("ovml-demo")), {}, Album(folder)), Visit()
    asked = Asked("moon, " + "a" * 100)
    (html,) = events.tag(visit, asked)
    assert "too long" not in html
    events.choose(visit, 2)
    assert "label too long" in events.rank(visit, asked)


def test_a_broken_image_is_named_and_the_others_tagged(folder):
    (folder / "a.jpg").write_bytes(b"nothing")
    *_, html = Events(Stub(), {}, Album(folder)).tag(Visit(), Asked("moon"))
    assert ">not an image that Pillow can read" in html
    assert html.count("<img") == 3
    assert html.count("ovml-tag") == 3
    assert str(folder) not in html


def test_pages_show_all_images_once(tmp_path):
    count = 2 * PAGE + 3
    for i in range(count):
        picture(tmp_path / f"{i:03}.png", size=(2, 2))
    stub = Stub()
    events, visit = Events(stub, {}, Album(tmp_path)), Visit()
    for first in (0, PAGE, 2 * PAGE, 5):
        events.turn_page(visit, first)
        *_, html = events.tag(visit, Asked("moon"))
    assert stub.ranked == [f"{i:03}.png" for i in [*range(count), *range(PAGE)]]
    assert f"1 to {PAGE} of {count} images" in html
    assert html.count("disabled") == 1


def test_tags_are_the_taggers_and_are_kept(folder):
    model = OpenVocabularyModel("ovml-demo")
    ranker, labels = Ranker(model), LabelVocabulary(("red circle", "moon", "blue fish", "ring"))
    path = str(folder / "a.jpg")
    assert list(ranker.best(path, labels)) == Tagger(model, labels, top_k=TAGS).predict(path)
    assert ranker.best(path, labels) is ranker.best(path, LabelVocabulary(labels.names))
    picture(folder / "a.jpg", "blue", (50, 50))
    assert list(ranker.best(path, labels)) == Tagger(model, labels, top_k=TAGS).predict(path)


# ---------------------------------------------------------------------- the start


@pytest.mark.parametrize(
    ("labels", "options", "chosen", "typed"),
    [
        (None, {}, TYPED, "square"),
        (("cat", "dog"), {"typed": True}, TYPED, "cat, dog"),
        (("cat", "dog"), {}, "given (2)", ""),
        (("cat", "dog"), {"vocabulary": "coco"}, "coco (80)", ""),
    ],
)
def test_the_labels_at_the_start(tmp_path, labels, options, chosen, typed):
    given = None if labels is None else LabelVocabulary(labels)
    first = start(OpenVocabularyModel("ovml-demo"), "ovml-demo", None, tmp_path / "examples", given, **options)
    assert first.chosen == chosen
    assert typed in first.typed
    assert len(first.album) == 6
    assert chosen == TYPED or chosen in first.lists
    assert {"drawn shapes (168)", "coco (80)", "voc (20)"} <= set(first.lists)


def test_a_models_own_labels_are_chosen_and_photographs_come_without_examples(tmp_path, folder):
    own = OpenVocabularyModel("ovml-demo", labels=["cat", "dog"])
    first = start(own, "run", None, tmp_path / "examples")
    assert (first.chosen, first.typed, first.album) == ("the model's own (2)", "", None)
    drawn = start(OpenVocabularyModel("ovml-demo", labels=list(LABELS[:5])), "run", None, tmp_path / "examples")
    assert (drawn.chosen, len(drawn.album)) == ("the model's own (5)", 6)
    album = Album(folder)
    assert start(own, "ovml-demo", album, tmp_path / "others").album is album
    assert not (tmp_path / "others").exists()
