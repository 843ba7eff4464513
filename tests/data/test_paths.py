"""Paths in data files: what leaves the data set's folder or names a server is refused by every data set."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import fake_nuswide
from fake_json import TRAIN, write_tree
from PIL import Image

from ovml.data import FolderDataModule, HubDataModule, JSONDataModule, NUSWIDEDataModule, OpenImagesDataModule
from ovml.data.paths import PathCheck
from ovml.data.rows import RowReader
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary


class Plain(FolderDataModule):
    vocabulary = LabelVocabulary(("cat",))
    has_validation = False

    def read_annotations(self, split):
        return [{"image": self.path, "positive": ["cat"]}]


def plain(root, path, **options):
    data = Plain(str(root), **options)
    data.path = path
    return data


def json_file(root, path, **options):
    arguments = write_tree(root)
    content = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps({**content, "images": [*TRAIN, [path, ["cat"]]]}))
    return JSONDataModule(**{**arguments, **options})


def write_parquet(file, row, features):
    """Write a row as it is: `Dataset.to_parquet` would read the image."""
    schema = datasets.Features(features).arrow_schema
    if isinstance(features["image"], datasets.Image):
        row = {**row, "image": {"bytes": None, "path": row["image"]}}
    pq.write_table(pa.Table.from_pylist([row], schema=schema), file)


def hub(kind, streaming=False):
    def make(root, path, **options):
        features = {"image": datasets.Value("string"), "labels": datasets.List(datasets.Value("string"))}
        if kind == "struct":
            features["image"] = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
            path = {"bytes": None, "path": path}
        elif kind == "image":
            features["image"] = datasets.Image()
        write_parquet(root / "train.parquet", {"image": path, "labels": ["cat"]}, features)
        return HubDataModule(str(root), labels=["cat"], streaming=streaming, **options)

    return make


def csv(root, path, **options):
    quoted = path.replace('"', '""')
    (root / "train.csv").write_text(f'image,labels\n"{quoted}",cat\n')
    return HubDataModule("csv", data_files=str(root / "*.csv"), labels=["cat"], **options)


def nuswide_rows(root, path, **options):
    rows = {"image": [{"bytes": None, "path": path}], "positive": [[0]]}
    features = {"image": datasets.Image(), "positive": datasets.List(datasets.Value("int32"))}
    # As the Hub gives them: `save_to_disk` would read the images.
    both = {split: datasets.Dataset.from_dict(rows, datasets.Features(features)) for split in ("train", "test")}
    data = NUSWIDEDataModule("owner/name", **options)
    data.layout.splits = both
    data.layout.vocabulary = LabelVocabulary(fake_nuswide.SEEN, fake_nuswide.CONCEPTS)
    data.path_check.folders.append(str(root))
    return data


def openimages(root, path, streaming=False, **options):
    features = {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "labels": [{"label": datasets.Value("string"), "confidence": datasets.Value("float32")}],
    }
    row = {"image": path, "image_id": "a", "labels": [{"label": "/m/1", "confidence": 1.0}]}
    (root / "data").mkdir()
    write_parquet(root / "data" / "train-0.parquet", row, features)
    for name, text in {"names.csv": "/m/1,cat\n/m/2,dog\n", "seen.txt": "/m/1\n", "unseen.txt": "/m/2\n"}.items():
        (root / name).write_text(text)
    options |= {"unseen_file": str(root / "unseen.txt"), "class_descriptions": str(root / "names.csv")}
    options |= {"classes_trainable": str(root / "seen.txt"), "streaming": streaming, "streamed_rows": 1}
    return OpenImagesDataModule(str(root), **options)


SETS = {
    "plain": plain,
    "json": json_file,
    "string": hub("string"),
    "struct": hub("struct"),
    "image": hub("image"),
    "stream": hub("image", streaming=True),
    "stream of structs": hub("struct", streaming=True),
    "csv": csv,
    "nuswide": nuswide_rows,
    "openimages": openimages,
    "openimages stream": lambda *args, **options: openimages(*args, streaming=True, **options),
}
OUTSIDE = ["../secret.png", "{outside}/secret.png", "{root}/../secret.png", "a/../../secret.png", "{root}-2/secret.png"]


@pytest.fixture
def made(tmp_path, tiny, monkeypatch):
    """Makes a data set with one training image of the path given, of a folder `set` beside a secret image."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "of datasets")
    # `datasets` sleeps after it streamed Parquet files, lest threads outlive the interpreter.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    for name in ("set", "set-2"):
        (tmp_path / name).mkdir()
    for name in ("set/in.png", "set-2/secret.png", "secret.png"):
        Image.new("RGB", (20, 16), (200, 9, 9)).save(tmp_path / name)

    def make(kind, path, **options):
        path = path.format(root=tmp_path / "set", outside=tmp_path)
        options = {"cache_dir": str(tmp_path / "cache"), "clip": tiny, "augment": False, **options}
        return SETS[kind](tmp_path / "set", path, **options)

    return make


def first_batch(data):
    data.streamed_rows = 1
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("kind", SETS)
def test_paths_that_leave_the_folder_are_refused_unless_allowed(kind, made, tmp_path):
    path = OUTSIDE[0] if kind in ("plain", "json") else OUTSIDE[1]
    with pytest.raises(UserError, match=r"image path '.*/secret.png' leaves the folder .*allow_outside=true") as caught:
        first_batch(made(kind, path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "csv"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_every_way_out_is_refused(kind, path, made, tmp_path):
    with pytest.raises(UserError, match=r"image path '.*secret.png' leaves the folder .*allow_outside=true"):
        first_batch(made(kind, path))


@pytest.mark.parametrize("kind", ["plain", "csv", "stream", "openimages"])
def test_allowed_paths_and_links_are_followed(kind, made, tmp_path):
    batch = first_batch(made(kind, "{outside}/secret.png", allow_outside=True))
    assert len(batch["pixel_values"]) == 1


@pytest.mark.parametrize("path", ["{root}/in.png", "{root}/link/secret.png", "{root}/a/../in.png"])
def test_paths_and_links_inside_are_read(path, made, tmp_path):
    (tmp_path / "set" / "link").symlink_to(tmp_path)
    (tmp_path / "set" / "a").mkdir()
    assert len(first_batch(made("csv", path))["pixel_values"]) == 1


@pytest.mark.parametrize("kind", SETS)
def test_names_with_line_breaks_are_refused(kind, made):
    with pytest.raises(UserError, match=r"image path '(/.*/)?a\\nb.png' has a line break") as caught:
        first_batch(made(kind, "a\nb.png", allow_outside=True))
    assert "\n" not in str(caught.value)


@pytest.fixture
def server(tmp_path):
    """An address of this machine that sends an image, and the list of its requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = (tmp_path / "secret.png").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret.png", asked
    server.shutdown()
    thread.join()
    server.server_close()


COLUMNS = [kind for kind in SETS if kind not in ("plain", "json")]


@pytest.mark.parametrize(
    ("kind", "form"), [*((kind, "{}") for kind in COLUMNS), ("csv", "zip://a.png::{}"), ("csv", "simplecache::{}")]
)
def test_no_server_is_asked(kind, form, made, server):
    url, asked = server
    with pytest.raises(UserError, match=r"image path '.*http://127.*' is an address on a server; .*allow_urls=true"):
        first_batch(made(kind, form.format(url), allow_outside=True))
    assert not asked


@pytest.mark.parametrize("kind", ["struct", "stream"])
def test_a_server_is_asked_if_that_is_allowed(kind, made, server):
    url, asked = server
    batch = first_batch(made(kind, url, allow_urls=True))
    assert len(batch["pixel_values"]) == 1
    assert asked


def test_rows_of_one_s_own_ask_no_server_either(server):
    url, asked = server
    row = {"image": {"bytes": None, "path": url}, "positive": [], "negative": [], "image_id": "x"}
    with pytest.raises(UserError, match=r"^row 'x': image path 'http.*' is an address on a server"):
        RowReader(lambda image: image, 1, True).read(row, 0, 0)
    assert not asked


def test_protocols_of_archives_and_the_hub_are_no_servers():
    check = PathCheck(["/data"])
    for path in ("zip://a/b.png::/data/x.zip", "hf://datasets/a/b@1/c.png", "zip://a.png::hf://datasets/a/b/c.zip"):
        assert check.fault(path) is None
    outside = ("zip://a.png::/etc/x.zip", "file:///etc/a.png", "file://~/a.png", "zip://a.png::~/x.zip")
    for path in (*outside, "s3://bucket/a.png", "FTP://a/b.png"):
        assert check.fault(path)
