"""The web page: what it computes, and the page itself in a headless browser."""

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovml import LabelVocabulary, Tagger, UserError, load_model
from ovml.cli.app.gallery import Tile, gallery
from ovml.cli.app.markup import SHOWN, SIDE, bars, error, head, view, where
from ovml.cli.app.ranking import Ranker, Ranking, typed_labels, vocabularies
from ovml.cli.app.server import address, build_server, listen
from ovml.cli.app.uploads import Uploads, upload_folder
from ovml.cli.app.visit import Events
from ovml.cli.main import command
from ovml.data.synthetic.scenes import LABELS, draw_scene
from ovml.encoders import TextEncoder
from ovml.inference.explain import explain
from ovml.inference.tagger import LabelScore
from ovml.metrics.calibration import Calibration

TYPED = ["red heart", "yellow star", "moon", "fish", "blue fish"]
ATTRIBUTES = {
    "type",
    "class",
    "data-rank",
    "aria-pressed",
    "aria-label",
    "role",
    "style",
    "src",
    "width",
    "height",
    "alt",
}
"""All that the page's markup has; no label adds one."""
TRICKY = ["<b>fat</b>", "${1+1} {{7}}", "\"q\" 'x' &amp;", "Gemüse"]
MOST = 30
WAIT = 60_000


@pytest.fixture(scope="module")
def model():
    return load_model("ovml-demo")


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="the page needs gradio")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    draw_scene(0, "test", 8).image.resize((216, 216)).save(path)
    return str(path)


class Buttons(HTMLParser):
    """Reads bars back: label and score of each, and the bars' widths."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.widths, self.tags, self.attributes, self._in = {}, [], [], [], None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes.extend(name for name, _ in attrs)
        attrs = dict(attrs)
        self.tags.append(tag)
        self.alt = attrs.get("alt", getattr(self, "alt", None))
        self._in = attrs.get("class")
        if self._in == "ovml-fill":
            self.widths.append(float(re.fullmatch(r"width: ([\d.]+)%", attrs["style"])[1]))

    def handle_data(self, data):
        self.texts.setdefault(self._in, []).append(data)


@given(
    st.lists(
        st.text("abc xyz", min_size=1).filter(str.strip), min_size=1, max_size=8, unique_by=lambda n: n.split()[0]
    ),
    st.lists(st.sampled_from([",", "\n", " , ", "\r\n", ",\n,", "\n\n"]), min_size=8, max_size=8),
)
def test_typed_labels_are_read_whatever_separates_them(names, separators):
    text = "".join(name + separator for name, separator in zip(names, separators, strict=False))
    assert typed_labels(text, 8).names == tuple(name.strip() for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none typed"),
        (" ,\n, ", "none typed"),
        ("a,b,c,d", "4 are too many; type at most 3"),
        ("cat, dog, CAT", "differ only in case"),
        ("x" * 201, "has 201 characters"),
    ],
)
def test_a_bad_list_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as raised:
        typed_labels(text, 3)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_the_lists_to_pick_from():
    own = LabelVocabulary(("a", "b"), ("c",), ("x", "y", "z"))
    given = LabelVocabulary(("k",))
    lists = vocabularies(SimpleNamespace(vocabulary=own), "run", given)
    assert [(title, labels.names, labels.texts) for title, labels in lists.items()] == [
        ("given (1)", ("k",), ("k",)),
        ("the model's own (3)", ("a", "b", "c"), ("x", "y", "z")),
        ("seen in training (2)", ("a", "b"), ("x", "y")),
        ("unseen in training (1)", ("c",), ("z",)),
    ]
    assert vocabularies(SimpleNamespace(vocabulary=None), "some/clip") == {}
    (shapes,) = vocabularies(SimpleNamespace(vocabulary=None), "ovml-demo").values()
    assert shapes.names == LABELS


@pytest.mark.parametrize("prompt", [None, ["a drawing of a {}", "one {}"]])
def test_a_ranking_is_the_taggers(model, scene, prompt):
    ranking = Ranker(model, prompt).rank(scene, LabelVocabulary(tuple(TYPED)))
    ((_, expected),) = Tagger(model, TYPED, top_k=None, prompt=prompt).tag([scene])
    assert list(ranking.scores) == expected


@pytest.mark.parametrize("prompt", [None, ["a drawing of a {}"]])
def test_a_list_is_embedded_once(model, scene, prompt, monkeypatch):
    ranker, vocabulary = Ranker(model, prompt), LabelVocabulary(("one of its own", str(prompt)))
    embedded, tokenize = [], TextEncoder.tokenize
    monkeypatch.setattr(TextEncoder, "tokenize", lambda *args: embedded.append(1) or tokenize(*args))
    first = ranker.rank(scene, vocabulary)
    count = len(embedded)
    assert count >= 1
    assert ranker.rank(scene, LabelVocabulary(vocabulary.names)) == first
    ranker.find(first, vocabulary.names[0])
    assert len(embedded) == count


def test_a_label_is_found_where_explain_finds_it(model, scene, monkeypatch):
    drawn = []
    monkeypatch.setattr(sys.modules[explain.__module__], "draw_explanation", lambda *args: drawn.append(args))
    explain(model, scene, TYPED)
    picture, grid, evidence = drawn[0][:3]
    ranker = Ranker(model)
    ranking = ranker.rank(scene, LabelVocabulary(tuple(TYPED)))
    for expected, (label, score) in zip(evidence, ranking.scores, strict=True):
        found_picture, found_grid, found = ranker.find(ranking, label)
        assert found_picture.tobytes() == picture.tobytes()
        assert found_grid == grid
        assert (found.label, found.patches) == (expected.label, expected.patches)
        assert found.score == pytest.approx(score, abs=1e-5)
        assert found.similarity == pytest.approx(expected.similarity, abs=1e-4)


def test_bars_tell_the_ranking():
    names = [*TRICKY, *(f"label {i}" for i in range(40))]
    scores = [LabelScore(name, 0.8 - 0.05 * i) for i, name in enumerate(names)]
    read = Buttons(bars(Ranking("a.png", LabelVocabulary(tuple(names)), scores)))
    assert read.texts["ovml-name"] == names[:SHOWN]
    assert [float(text) for text in read.texts["ovml-score"]] == pytest.approx([s.score for s in scores[:SHOWN]])
    assert read.widths == pytest.approx([max(100 * s.score / 0.8, 0) for s in scores[:SHOWN]], abs=0.06)
    assert "44 labels ranked, the best 20 shown" in read.texts["ovml-note"][0]
    assert set(read.tags) == {"p", "ol", "li", "button", "span"}


def test_bars_of_probabilities_are_the_probabilities():
    scores = [LabelScore("a", 0.4), LabelScore("b", 0.025)]
    read = Buttons(bars(Ranking("a.png", LabelVocabulary(("a", "b")), scores, probabilities=True)))
    assert read.texts["ovml-score"] == ["40.0 %", "2.5 %"]
    assert read.widths == [40.0, 2.5]


def test_bars_of_negative_scores_are_empty():
    scores = [LabelScore("a", -0.4), LabelScore("b", -0.5)]
    assert Buttons(bars(Ranking("a.png", LabelVocabulary(("a", "b")), scores))).widths == [0, 0]


HOSTILE = ['x" onload="alert(1)', "x' onerror='alert(1)", "<img src=x onerror=alert(1)>", "a&quot;b", "</b><i>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_users_wrote_is_text(model, scene, text):
    ranker = Ranker(model)
    ranking = ranker.rank(scene, LabelVocabulary((text,)))
    marked = {
        "ovml-name": (bars(ranking), {"p", "ol", "li", "button", "span"}),
        None: (where(*ranker.find(ranking, text)), {"figure", "img", "figcaption", "strong", "span"}),
        "ovml-error": (error(text), {"p"}),
        "ovml-note": (view(Image.new("RGB", (4, 4)), text), {"figure", "img", "figcaption", "span"}),
    }
    for place, (html, tags) in marked.items():
        read = Buttons(html)
        assert set(read.tags) == tags
        assert set(read.attributes) <= ATTRIBUTES
        assert "".join(read.texts[place]) in (text, f"{text} ")
    assert Buttons(where(*ranker.find(ranking, text))).alt == f"Heat map of where {text} was found"


@pytest.mark.parametrize("text", HOSTILE)
def test_names_tags_and_errors_of_the_gallery_are_text(text):
    tiles = {0: Tile(text, "hash", [LabelScore(text, 0.5)]), 7: Tile(text, problem=text)}
    read = Buttons(gallery(tiles, 0, 30, chosen=7))
    assert set(read.tags) == {"div", "p", "button", "ol", "li", "span", "img"}
    assert set(read.attributes) <= {*ATTRIBUTES, "data-picture", "data-first", "aria-disabled", "loading", "title"}
    assert read.texts["ovml-file"] == [text, text]
    assert read.texts["ovml-problem"] == [text]
    assert text in [written.strip() for written in read.texts[None]]


@pytest.mark.parametrize("name", ["org/x<i>", 'x" onload="alert(1)', "ovml-demo"])
def test_the_head_names_the_model(name):
    read = Buttons(head(name))
    assert set(read.tags) == {"h1", "p", "br", "b"}
    assert set(read.attributes) == {"class"}
    assert name in read.texts[None]
    assert ("start the page with --model" in head(name)) == (name == "ovml-demo")


@pytest.mark.parametrize("folder", ["/home/ada/secret/runs/demo/version_0", "runs/demo/version_0"])
def test_the_head_tells_no_folder_of_this_machine(folder):
    assert Buttons(head(folder)).texts[None][-2:] == ["demo/version_0", "."]


def png(width, height, bits, colour, chunks=(), content=None):
    """A PNG of zeros; `content` replaces its pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if content is None:
        content = zlib.compress(bytes(1 + (width * bits * {0: 1, 2: 3, 3: 1}[colour] + 7) // 8) * height)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    others = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", content) + chunk(b"IEND", b"")


PALETTE = ((b"PLTE", bytes(6)), (b"tRNS", b"\0\xff"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((13300, 13300, 16, 0), ()),
        ((13300, 13300, 1, 3), PALETTE),
        ((177_000_000, 1, 8, 2), ()),
        ((7072, 7072, 8, 2), ()),  # 13,184 pixels beyond the limit
        ((100_000, 100_000, 8, 2), ()),  # beyond Pillow's own
    ],
)
def test_a_bomb_is_one_line_before_it_is_decoded(model, tmp_path, shape, chunks):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*shape, chunks, content=b""))  # there is nothing to decode: that would be another error
    with pytest.raises(UserError, match=r"^bomb\.png: .* (too many|limit)") as raised:
        Ranker(model).rank(str(path), LabelVocabulary(("a",)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shape", [(200_000, 1, 8, 2), (1, 200_000, 8, 2), (30_000_000, 1, 1, 3), (1, 1, 8, 2)])
def test_a_strip_is_ranked_and_shown(model, tmp_path, shape):
    path = tmp_path / "strip.png"
    path.write_bytes(png(*shape, PALETTE if shape[3] == 3 else ()))
    ranker = Ranker(model)
    ranking = ranker.rank(str(path), LabelVocabulary(("a", "b")))
    assert len(ranking.scores) == 2
    read = pixels(re.search(r'src="([^"]*)', where(*ranker.find(ranking, "a")))[1])
    assert max(read.shape[:2]) == SIDE


def test_a_picture_that_is_gone_or_broken_is_one_line(model, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for path, message in (
        (broken, "broken.png: "),
        (tmp_path / "gone.png", "gone.png: no such file any more; upload it again"),
    ):
        with pytest.raises(UserError, match=f"^{message}") as raised:
            Ranker(model).rank(str(path), LabelVocabulary(("a",)))
        assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "0 to 65535"),
        (["--port", "65536"], "0 to 65535"),
        (["--port", "-1"], "0 to 65535"),
        (["--port", "x"], "expected a whole number"),
        (["--max-labels", "0"], "at least 1"),
        (["--max-upload-mb", "x"], "whole number"),
        (["--labels", "a,a"], "is repeated"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--port", "{taken}"], "cannot be used"),
        (["--port", "0", "--device", "nowhere"], "--device nowhere"),
        (["--port", "0", "--model", "{taken}/nothing"], "no such checkpoint"),
    ],
)
def test_bad_input_is_one_line(arguments, message, gradio):
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=message) as raised:
        command("app")([*(argument.format(taken=taken.getsockname()[1]) for argument in arguments)])
    assert "\n" not in str(raised.value)


def test_the_address_is_one_that_a_browser_takes():
    with listen("127.0.0.1", 0) as taken:
        parts = urlsplit(address(taken))
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            assert connection.getpeername() == taken.getsockname()
    with listen("0.0.0.0", 0) as taken:
        assert urlsplit(address(taken)).hostname == "127.0.0.1"


def test_every_port_of_the_range_is_taken(capsys):
    """The label list is refused after the port was read."""
    for port in ("0", "1", "65535"):
        with pytest.raises(UserError, match="repeated"):
            command("app")(["--port", port, "--labels", "a,a"])


@pytest.fixture
def calibrated(model, monkeypatch):
    calibration = Calibration(4.0, -1.0, threshold=0.5, vocabulary=LabelVocabulary(("ring", "moon", "drop")))
    monkeypatch.setattr(model, "calibration", calibration)
    return model


def test_a_calibrated_model_gives_probabilities(calibrated, scene):
    vocabulary = LabelVocabulary(tuple(TYPED))
    ((_, expected),) = Tagger(calibrated, TYPED, top_k=None, probabilities=True).tag([scene])
    ranking = Ranker(calibrated).rank(scene, vocabulary, probabilities=True)
    assert (list(ranking.scores), ranking.probabilities) == (expected, True)
    assert not Ranker(calibrated).rank(scene, vocabulary).probabilities
    assert Ranker(calibrated).find(ranking, expected[0].label)[2].label == expected[0].label


def test_the_box_of_probabilities_is_there_for_a_calibrated_model(model, gradio, request):
    def boxes():
        page = build_page(Events(Ranker(model), {}))
        return [block.label for block in page.blocks.values() if isinstance(block, gradio.Checkbox)]

    from ovml.cli.app.page import build_page

    assert boxes() == []
    request.getfixturevalue("calibrated")
    assert boxes() == ["probabilities"]


def test_a_picture_is_not_fetched_from_an_address(gradio):
    from ovml.cli.app.page import upload_field

    with gradio.Blocks():
        field = upload_field()
    with pytest.raises(gradio.Error, match="not fetched"):
        asyncio.run(field.async_move_resource_to_block_cache("http://127.0.0.1:9/a.png"))


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def served(tmp_path_factory, gradio):
    """The address of the page, served by the command in a process of its own."""
    command = [sys.executable, "-m", "ovml", "app", "--port", "0", "--no-browser"]
    command += ["--max-labels", str(MOST), "--max-upload-mb", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads"))}
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    deadline = threading.Timer(WAIT / 1000, process.kill)
    deadline.start()
    try:
        said = re.match(r"ovml: (http://127\.0\.0\.1:\d+) ", process.stdout.readline())
        deadline.cancel()
        assert said, log.read_text()
        yield said[1]
        assert process.poll() is None, log.read_text()
    finally:
        deadline.cancel()
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=30)
        process.stdout.close()
    assert (code, log.read_text().splitlines()[-1]) == (0, "ovml: ended"), log.read_text()
    # Gradio tells of those who name files that they did not upload, and of nothing else.
    assert log.read_text().count("Traceback") == log.read_text().count("InvalidPathError: "), log.read_text()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium to open the page with")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(served, browser):
    """The page, just opened; nothing on it may ask another host."""
    page = browser.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(WAIT)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(served)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    yield page
    page.close()
    assert asked
    outside = [url for url in asked if not url.startswith((served, "data:", "blob:"))]
    assert outside == []


def asked_without_a_browser(served, path):
    """What the server answers to one who names a file, and has uploaded none."""

    def ask(place, data=None):
        request = urllib.request.Request(f"{served}/{place}", data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=WAIT / 1000)

    with ask("config") as answer:
        config = json.load(answer)
    (field,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "drop")
    (event,) = (d["id"] for d in config["dependencies"] if [field, "upload"] in d["targets"])
    data = [[{"path": str(path), "meta": {"_type": "gradio.FileData"}}], None]
    body = {"data": data, "fn_index": event, "trigger_id": field, "session_hash": f"s{hash(str(path))}"}
    ask("gradio_api/queue/join", json.dumps(body).encode()).close()
    with ask(f"gradio_api/queue/data?session_hash={body['session_hash']}") as lines:
        return next(line.decode() for line in lines if b'"process_completed"' in line)


@pytest.mark.parametrize("place", ["elsewhere", "in the repository", "an address"])
def test_files_that_were_not_uploaded_are_not_read(served, picture, place):
    path = {"elsewhere": picture, "in the repository": __file__, "an address": f"{served}/favicon.ico"}[place]
    answer = asked_without_a_browser(served, path)
    assert '"success":false' in answer
    assert "ovml-" not in answer  # neither the image nor what is wrong with the file


def upload(page, *paths):
    """Choose files; wait until the first is shown."""
    page.locator("#drop input[type=file]").set_input_files([str(path) for path in paths])
    page.get_by_alt_text(f"The image {Path(paths[0]).name}").wait_for()


def field(page):
    return page.get_by_role("textbox", name="Labels")


def pick(page, title):
    page.get_by_label("Or a vocabulary").click()
    page.get_by_role("option", name=title).click()


def type_labels(page, labels):
    field(page).fill("\n".join(labels))


def ranking_of(page):
    names = page.locator(".ovml-name").all_inner_texts()
    return list(zip(names, map(float, page.locator(".ovml-score").all_inner_texts()), strict=True))


def test_labels_are_typed_first_and_stay_for_each_picture(page, scene, model, tmp_path):
    other = tmp_path / "other.png"
    draw_scene(0, "test", 9).image.save(other)
    page.locator("#labels textarea:focus").wait_for()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(", ".join(TYPED))
    page.keyboard.press("Enter")
    tagger = Tagger(model, TYPED, top_k=None)
    for path in (scene, other):
        upload(page, path)
        page.locator(".ovml-bar").first.wait_for()
        assert [label for label, _ in ranking_of(page)] == [label for label, _ in tagger.predict(str(path))]
    assert field(page).input_value() == ", ".join(TYPED)


def test_a_picture_is_ranked_and_a_label_found(page, scene, model, tmp_path):
    type_labels(page, TYPED + TRICKY)
    upload(page, scene)
    page.locator(".ovml-bar").first.wait_for()
    ((_, expected),) = Tagger(model, TYPED + TRICKY, top_k=None).tag([scene])
    shown = ranking_of(page)
    assert [label for label, _ in shown] == [label for label, _ in expected]
    assert [score for _, score in shown] == pytest.approx([score for _, score in expected], abs=2e-3)

    label = expected[2].label
    bar = page.locator(".ovml-bar").nth(2)
    bar.click()
    picture = page.get_by_alt_text(f"Heat map of where {label} was found")
    picture.wait_for()
    assert page.locator(".ovml-bar[aria-pressed=true]").all_inner_texts() == [bar.inner_text()]
    ranker = Ranker(model)
    vocabulary = LabelVocabulary(tuple(TYPED + TRICKY))
    drawn = where(*ranker.find(ranker.rank(scene, vocabulary), label))
    there, here = (pixels(picture.get_attribute("src")), pixels(re.search(r'src="([^"]*)', drawn)[1]))
    assert np.abs(there - here).mean() < 1

    page.keyboard.press("Tab")  # the next bar, without a mouse
    page.keyboard.press("Enter")
    page.get_by_alt_text(f"Heat map of where {expected[3].label} was found").wait_for()
    page.keyboard.press("Enter")  # and back to the image
    page.get_by_alt_text("The image scene.png").wait_for()
    assert page.locator(".ovml-bar[aria-pressed=true]").count() == 0

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as image:
        assert image.width == 1180
        assert np.asarray(image.convert("L")).std() > 10
        assert len(set(image.convert("RGB").resize((300, 300)).get_flattened_data())) > 200


def pixels(source):
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_an_example_is_ready_and_a_vocabulary_can_be_picked(page, model):
    from playwright.sync_api import expect

    page.locator(".ovml-tile").first.click()
    page.locator(".ovml-bar").first.wait_for()
    assert len(ranking_of(page)) >= 2
    pick(page, "drawn shapes")
    page.get_by_text(f"{len(LABELS)} labels ranked, the best {SHOWN} shown (drawn shapes)").wait_for()
    assert len(ranking_of(page)) == SHOWN
    pick(page, "coco")
    page.get_by_text(f"80 labels ranked, the best {SHOWN} shown (coco)").wait_for()
    type_labels(page, TYPED)
    field(page).press("Enter")
    page.get_by_text(f"{len(TYPED)} labels ranked").wait_for()
    expect(page.get_by_label("Or a vocabulary")).to_have_value("none")


def test_what_is_wrong_is_said_in_one_line(page, scene, tmp_path):
    rank, problem = page.get_by_role("button", name="Rank"), page.locator("#result [role=alert]")
    upload(page, scene)
    type_labels(page, [f"label {i}" for i in range(MOST + 1)])
    rank.click()
    problem.wait_for()
    assert problem.inner_text() == f"labels: {MOST + 1} are too many; type at most {MOST}"
    type_labels(page, ["cat", "Cat"])
    rank.click()
    page.get_by_text("differ only in case").wait_for()
    type_labels(page, [])
    rank.click()
    page.get_by_text("Type labels and press Enter, or choose a vocabulary").wait_for()

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    type_labels(page, ["cat"])
    page.locator("#drop input[type=file]").set_input_files(str(broken))
    page.locator("#result [role=alert]", has_text="broken.png: not an image that Pillow can read").wait_for()
    assert page.locator("#image img").count() == 0


GIVEN = """([kind, name, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name, {type: 'image/png'}));
  const about = {bubbles: true, cancelable: true};
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', {...about, clipboardData: given})
    : new DragEvent('drop', {...about, dataTransfer: given});
  document.getElementById('labels').dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_is_pasted_or_dropped_anywhere(page, scene, kind):
    type_labels(page, TYPED)
    page.evaluate(GIVEN, [kind, "given.png", base64.b64encode(Path(scene).read_bytes()).decode()])
    page.get_by_alt_text("The image given.png").wait_for()
    page.get_by_text(f"{len(TYPED)} labels ranked").wait_for()


def test_several_pictures_are_a_gallery_with_their_tags(page, scene, model, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        draw_scene(0, "test", 20 + i).image.save(path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    type_labels(page, TYPED)
    upload(page, *paths, tmp_path / "broken.png")
    tagger = Tagger(model, TYPED, top_k=3)
    for i, path in enumerate(paths):
        tile = page.locator(f'.ovml-tile:has([title="{i}.png"])')
        tile.locator(".ovml-tag").nth(2).wait_for()
        tags = [text.split("\n")[0] for text in tile.locator(".ovml-tag").all_inner_texts()]
        assert tags == [label for label, _ in tagger.predict(str(path))]
        assert tile.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.locator('.ovml-tile:has([title="broken.png"])').get_by_text("not an image that Pillow can read").wait_for()
    page.locator('.ovml-tile:has([title="2.png"])').click()
    page.get_by_alt_text("The image 2.png").wait_for()
    page.locator(".ovml-bar").first.wait_for()
    ranked = [label for label, _ in tagger.predict(str(paths[2]))]
    assert [label for label, _ in ranking_of(page)][:3] == ranked
    assert page.locator(".ovml-tile[aria-pressed=true]").count() == 1


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_or_pale_on_a_phone_and_on_a_desktop(page, scene, width, scheme):
    page.set_viewport_size({"width": width, "height": 740})
    page.emulate_media(color_scheme=scheme)
    type_labels(page, [*TYPED, "a" * 22, "one of several words"])
    upload(page, scene)
    page.locator(".ovml-bar").nth(5).click()
    page.get_by_alt_text(re.compile("Heat map")).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert wide == 0
    for selector in (".ovml-note", ".ovml-lead", ".ovml-name", ".ovml-score", ".ovml-file"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """(element) => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  while (behind && parts(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const ground = behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)';
  const [less, more] = [getComputedStyle(element).color, ground].map(light).sort((a, b) => a - b);
  return (more + 0.05) / (less + 0.05);
}"""
"""WCAG's contrast of text and what is behind it."""


class Slow:
    """Ranks when it is told to; the label is the image's name."""

    calibrated, scorings = False, ()

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def rank(self, image, vocabulary, probabilities, scoring=""):
        self.begun.set()
        assert self.go.wait(WAIT / 1000)
        return Ranking(image, vocabulary, [LabelScore(Path(image).stem, 0.5)])

    def embed(self, vocabulary, probabilities, scoring=""):
        pass

    def best(self, image, vocabulary, probabilities, scoring=""):
        return ()


SEEN = """() => {
  window.seen = [];
  const look = () => document.querySelectorAll('.ovml-name').forEach((name) => window.seen.push(name.textContent));
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true});
}"""


def test_a_ranking_of_the_former_picture_does_not_come_late(browser, gradio, scene, tmp_path):
    from ovml.cli.app.page import build_page

    ranker = Slow()
    with listen("127.0.0.1", 0) as taken, upload_folder() as folder:
        server = build_server(build_page(Events(ranker, {})), taken, Uploads(folder, 2**20))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        try:
            page.goto(address(taken))
            page.evaluate(SEEN)
            draw_scene(0, "test", 9).image.save(tmp_path / "other.png")
            type_labels(page, ["a"])
            upload(page, scene)
            assert ranker.begun.wait(WAIT / 1000)
            upload(page, tmp_path / "other.png")  # it is shown while the former one is still being ranked
            ranker.go.set()
            page.locator(".ovml-name", has_text="other").wait_for()
            assert set(page.evaluate("window.seen")) == {"other"}
        finally:
            page.close()
            ranker.go.set()
            server.should_exit = True
            thread.join()


def test_another_picture_clears_the_ranking_until_its_own_is_there(page, scene):
    type_labels(page, ["only this"])
    upload(page, scene)
    page.get_by_text("1 label ranked").wait_for()
    page.locator(".ovml-bar").click()
    page.get_by_alt_text("Heat map of where only this was found").wait_for()
    page.evaluate(SEEN)
    type_labels(page, ["and", "those"])
    page.locator(".ovml-tile", has_text="scene 0.png").click()
    page.get_by_alt_text("The image scene 0.png").wait_for()
    page.get_by_text("2 labels ranked").wait_for()
    assert page.get_by_alt_text("Heat map").count() == 0


def test_the_page_tells_no_folder(page, scene, served):
    upload(page, scene)
    page.locator(".ovml-tile", has_text="scene.png").wait_for()
    assert re.fullmatch("/ovml-thumbnails/[0-9a-f]{32}", page.locator(".ovml-tile img").first.get_attribute("src"))
    assert tempfile.gettempdir() not in page.content()


def test_a_file_that_is_too_large_is_refused(page, tmp_path):
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > 2**20
    page.locator("#drop input[type=file]").set_input_files(str(large))
    page.get_by_text(re.compile("size", re.I)).wait_for()
    assert page.locator("#image img").count() == 0


def test_the_picture_of_the_docs_can_be_made_again(browser, tmp_path):
    script = Path(__file__).parents[2] / "examples" / "picture_of_app.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path)}
    subprocess.run(
        [sys.executable, script, "ovml-demo", tmp_path / "app.png"],
        env=environment,
        check=True,
        timeout=2 * WAIT / 1000,
    )
    with Image.open(tmp_path / "app.png") as image:
        assert image.width == 1280
        assert np.asarray(image.convert("L")).std() > 10
    assert [path.name for path in tmp_path.iterdir()] == ["app.png"]
