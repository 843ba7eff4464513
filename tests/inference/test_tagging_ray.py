import os
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ovml.inference.ray as ray_module
from ovml import LabelVocabulary, UserError
from ovml.inference.ray import SETTINGS, TaggerOptions, _images, _paths, _Worker, tag_with_ray
from ovml.inference.tag_files import image_name, tag_row, write_parquet
from ovml.inference.tag_output import Written
from ovml.saving import load_model

LABELS = LabelVocabulary.from_ids(["/m/1", "/m/2", "/m/3"], [], {"/m/1": "bank", "/m/2": "cat", "/m/3": "bank"})


@pytest.fixture(scope="module")
def options(tiny):
    return TaggerOptions(tiny, load_model, LABELS, top_k=2, prompt=("a {}", "the {}"), batch_size=4, num_workers=1)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02d}.png")
    (folder / "07.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def expected(options, album, tmp_path_factory):
    """Rows by image, of one process."""
    out = tmp_path_factory.mktemp("single") / "tags.parquet"
    options.tagger("cpu").write(sorted(album.iterdir()), out)
    return by_image(pq.read_table(out))


def by_image(table):
    rows = {row["image"]: row for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def assert_same(rows, expected):
    assert rows.keys() == expected.keys()
    for image, row in rows.items():
        assert row["error"] == expected[image]["error"]
        for label, other in zip(row["labels"], expected[image]["labels"], strict=True):
            assert label["label"] == other["label"]
            assert label["score"] == pytest.approx(other["score"], abs=2e-6)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ovml[ray]'")
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'ovml[ray]'")
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    nodes = [process for process in psutil.Process().children(recursive=True) if process.name() == "raylet"]
    workers = [worker for node in nodes for worker in node.children(recursive=True)]
    ray.shutdown()
    for worker in workers:  # they take their time to notice that Ray has gone
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    psutil.wait_procs(workers)


def test_two_workers_give_what_one_process_gives_and_go_on(cluster, options, album, expected, tmp_path):
    paths, out = sorted(album.iterdir()), tmp_path / "tags"
    (tmp_path / "paths.txt").write_text("".join(f"{path}\n" for path in paths[:14]))
    counts = []
    written = tag_with_ray(tmp_path / "paths.txt", options, out, workers=2, on_rows=counts.append)
    assert written == counts[-1] == Written(14, 0, 1)
    first = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert len(first) > 2
    assert_same(by_image(pq.read_table(out)), {str(path): expected[str(path)] for path in paths[:14]})

    # A file is lost, another one torn, and the images now come as bytes in Parquet.
    lost, torn = sorted(first)[:2]
    lost.unlink()
    torn.write_bytes(torn.read_bytes()[:100])
    rows = [{"image": {"bytes": p.read_bytes(), "path": None}, "image_id": str(p), "more": 1} for p in reversed(paths)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    left = sum(pq.read_metadata(path).num_rows for path in first if path not in (lost, torn))
    written = tag_with_ray(tmp_path / "images.parquet", options, out, workers=1)
    assert (written.rows, written.resumed) == (24, left)
    rows = by_image(pq.read_table(out))
    for path in (out for out in first if out not in (lost, torn)):
        assert path.stat().st_mtime_ns == first[path]
    error = rows[str(album / "07.png")].pop("error")
    assert "not an image" in error
    assert_same({**rows, str(album / "07.png"): expected[str(album / "07.png")]}, expected)
    assert {path.name for path in out.iterdir() if path.suffix != ".parquet"} == {SETTINGS}

    with pytest.raises(UserError, match=r"tags: begun with another top_k; .*overwrite=True"):
        tag_with_ray(tmp_path / "images.parquet", options._replace(top_k=1), out)


def test_bad_input_is_named_before_any_worker_starts(cluster, options, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "nameless.parquet")
    pq.write_table(pa.table({"picture": ["x"]}), tmp_path / "other.parquet")
    for name, message in [
        ("none", "none: no such file or folder"),
        ("empty", "empty: no images in this folder"),
        ("empty.txt", r"empty\.txt: lists no image"),
        ("nameless.parquet", r"nameless\.parquet: has the columns image; 'image' is needed, and 'image_id'"),
        ("other.parquet", r"other\.parquet: has the columns picture"),
    ]:
        with pytest.raises(UserError, match=message):
            tag_with_ray(tmp_path / name, options, tmp_path / "out")
    with pytest.raises(UserError, match="template"):
        tag_with_ray(tmp_path, options._replace(prompt="a photo"), tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        tag_with_ray(tmp_path, options._replace(model="/no/clip"), tmp_path / "out")


def test_a_worker_leaves_out_what_is_done_and_writes_a_batch_once(options, album, expected, tmp_path):
    table = _paths(album)
    names = table["image_id"].to_pylist()
    done, out = tmp_path / "done.parquet", tmp_path / "out"
    out.mkdir()
    write_parquet([tag_row(name, ()) for name in names[:5]], out / "done.parquet")
    worker = _Worker(options, "cpu", tmp_path, out)
    (out / "done.parquet").rename(done)
    for _ in range(2):  # Ray may run a batch again
        assert worker(table.slice(0, 12)).to_pylist() == [{"rows": 7, "errors": 1}]
    assert worker(table.slice(0, 5)).to_pylist() == [{"rows": 0, "errors": 0}]
    (file,) = out.iterdir()
    assert_same(by_image(pq.read_table(file)), {name: expected[name] for name in names[5:12]})


def test_rows_are_images_by_path_by_bytes_or_as_datasets_has_them(album, tmp_path):
    odd = os.fsdecode(b"\xff.png")
    (tmp_path / "paths.txt").write_bytes(b"00.png\r\n\n\xff.png\n/a.png")
    assert list(_images(_paths(tmp_path / "paths.txt"), album)) == [
        ("00.png", album / "00.png"),
        (image_name(odd, 0), album / odd),
        ("/a.png", Path("/a.png")),
    ]
    assert list(_images(_paths(album), tmp_path)) == [(str(path), path) for path in sorted(album.iterdir())]
    content = (album / "00.png").read_bytes()
    assert list(_images(pa.table({"image": ["00.png"]}), album)) == [("00.png", album / "00.png")]
    assert list(_images(pa.table({"image": [content, None], "image_id": [3, 4]}), album)) == [
        ("3", content),
        ("4", b""),
    ]
    images = [str(album / "00.png"), {"bytes": content, "path": "x.png"}, {"bytes": content}]
    rows = datasets.Dataset.from_dict({"image": images, "image_id": ["a", "b", "c"]}, datasets.Features(
        {"image": datasets.Image(), "image_id": datasets.Value("string")}))  # fmt: skip
    rows.to_parquet(tmp_path / "rows.parquet")
    assert list(_images(pq.read_table(tmp_path / "rows.parquet"), tmp_path)) == [
        ("a", album / "00.png"),
        ("b", content),
        ("c", content),
    ]


def test_a_file_is_whole_or_not_there(options, album, tmp_path, monkeypatch):
    def torn(table, path, **_):
        path.write_bytes(b"PAR1")
        raise OSError("no space")

    monkeypatch.setattr(ray_module, "write_parquet", torn)
    with pytest.raises(OSError, match="no space"):
        _Worker(options, "cpu", tmp_path, tmp_path)(_paths(album).slice(0, 3))
    assert list(tmp_path.iterdir()) == []
