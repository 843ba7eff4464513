import json
import os
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import python_path
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pretended_gpus import OnPretendedGPUs

import ovml.inference.ray_stages as stages
from ovml import LabelVocabulary, UserError
from ovml.inference.ray import BLOCK_BYTES, SETTINGS, TaggerOptions, _bounded, _paths, _read, tag_with_ray
from ovml.inference.ray_plan import Plan, make_plan
from ovml.inference.ray_stages import Scorer, read_rows, sorted_digests, table_images, write_rows
from ovml.inference.tag_files import image_name
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
    """Two machines: one has the GPU, which is pretended. Their processes find the tests' modules."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ovml[ray]'")
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'ovml[ray]'")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 2**27}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **memory})
        made.add_node(num_cpus=2, num_gpus=1, **memory)
    ray.init(address=made.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    nodes = [process for process in psutil.Process().children(recursive=True) if process.name() == "raylet"]
    workers = [worker for node in nodes for worker in node.children(recursive=True)]
    ray.shutdown()
    made.shutdown()
    for worker in workers:  # they take their time to notice that Ray has gone
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    psutil.wait_procs(workers)


def test_models_run_where_the_gpus_are_and_use_what_they_reserved(cluster, options, album, expected):
    out, told = Path(options.model).parent / "tags-gpu", Path(options.model).parent / "told"
    written = tag_with_ray(album, OnPretendedGPUs(*options), out)
    assert written == Written(24, 0, 1)
    assert_same(by_image(pq.read_table(out)), expected)
    (found,) = [json.loads(path.read_text()) for path in told.iterdir()]
    of_gpu = [node["NodeID"] for node in cluster.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    assert [found["node"]] == of_gpu
    assert (found["GPU"], found["CPU"], found["threads"]) == (1, 1, 1)


def test_two_workers_give_what_one_process_gives_and_go_on(cluster, options, album, expected, tmp_path):
    paths, out = sorted(album.iterdir()), tmp_path / "tags"
    (tmp_path / "paths.txt").write_text("".join(f"{path}\n" for path in paths[:14]))
    counts = []
    written = tag_with_ray(tmp_path / "paths.txt", options, out, workers=2, device="cpu", on_rows=counts.append)
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
    written = tag_with_ray(tmp_path / "images.parquet", options, out, workers=1, device="cpu")
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


def test_readers_wait_for_models(cluster):
    """Ray keeps the blocks of images that the plan counts, and their copies for the models, and no more."""
    dataset = cluster.data.from_arrow(pa.table({"image": ["a"]}))
    plan = Plan(workers=2, gpus=1, cpus=1, readers=6, reader_cpus=1)
    read = _bounded(cluster, dataset, plan).map_batches(lambda table: table)
    assert read.context.execution_options.resource_limits.object_store_memory == 2 * (6 + 2 * 2) * BLOCK_BYTES
    assert read.context.target_max_block_size == BLOCK_BYTES
    others = cluster.data.DataContext.get_current()
    assert others.execution_options.resource_limits.object_store_memory == float("inf")


def test_images_are_read_beside_the_models_and_not_in_their_processes(cluster, capfd):
    """Although both reserve the same."""
    dataset = cluster.data.from_arrow(pa.table({"image": ["a"]}))
    read = _read(cluster, dataset, Plan(workers=1, gpus=0, cpus=1, readers=1, reader_cpus=1), {})
    read.map_batches(Scorer, compute=cluster.data.ActorPoolStrategy(size=1), num_cpus=1).explain()
    plan = capfd.readouterr().out
    assert "ActorPoolMapOperator[MapBatches(Scorer)]" in plan
    assert "TaskPoolMapOperator[MapBatches(read_rows)]" in plan


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
    with pytest.raises(UserError, match="workers: 2 on cuda need a GPU each, the Ray cluster has 1; give fewer"):
        tag_with_ray(tmp_path / "other.parquet", options, tmp_path / "out", workers=2)
    with pytest.raises(UserError, match="template"):
        tag_with_ray(tmp_path, options._replace(prompt="a photo"), tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        tag_with_ray(tmp_path, options._replace(model="/no/clip"), tmp_path / "out")


@pytest.fixture
def processor(options):
    return options.tagger("cpu").model.image_processor


def test_what_is_done_is_left_out_and_a_batch_that_runs_again_replaces_its_file(
    options, processor, album, expected, tmp_path
):
    table = _paths(album)
    names = table["image_id"].to_pylist()
    done, scorer = sorted_digests(names[:5]), Scorer(options, "cpu", threads=1)
    for _ in range(2):
        (read,) = read_rows(table.slice(0, 12), processor, tmp_path, done)
        assert read["image"].to_pylist() == names[5:12]
        assert [i for i, error in enumerate(read["error"].to_pylist()) if error is not None] == [2]
        assert write_rows(scorer(read), tmp_path).to_pylist() == [{"rows": 7, "errors": 1}]
    assert not list(read_rows(table.slice(0, 5), processor, tmp_path, done))
    (file,) = tmp_path.iterdir()
    assert_same(by_image(pq.read_table(file)), {name: expected[name] for name in names[5:12]})


def test_readers_hand_on_few_images_at_once(processor, album, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "IMAGES_AT_ONCE", 10)
    tables = list(read_rows(_paths(album), processor, tmp_path))
    assert [len(table) for table in tables] == [10, 10, 4]
    assert {len(content) for content in tables[0]["pixels"].to_pylist() if content} == {3 * processor.size**2}


def test_a_batch_of_broken_images_has_rows_too(options, processor, album, tmp_path):
    (read,) = read_rows(_paths(album).slice(7, 1), processor, tmp_path)
    (row,) = Scorer(options, "cpu", threads=1)(read).to_pylist()
    assert row["labels"] == []
    assert "not an image" in row["error"]


def test_threads_are_those_reserved(options):
    before = torch.get_num_threads()
    try:
        Scorer(options, "cpu", threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


HEAD, GPUS = {"CPU": 32.0}, {"CPU": 16.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([HEAD, GPUS, GPUS], "cuda", None, Plan(16, 1, 1, 32 + 8 + 8, 1)),  # nodes without GPUs read only
        ([HEAD, GPUS, GPUS], "cuda", 3, Plan(3, 1, 1, 32 + 8 + 8, 1)),
        ([{"CPU": 4, "GPU": 8}], "cuda", None, Plan(8, 1, 0.25, 2, 1)),  # half of the cores read
        ([{"CPU": 1, "GPU": 1}], "cuda", None, Plan(1, 1, 0.5, 1, 0.5)),
        ([{"CPU": 1, "GPU": 1}, {"GPU": 0}], "cuda", None, Plan(1, 1, 0.5, 1, 0.5)),
        ([GPUS, {"CPU": 3, "GPU": 2}], "cuda", None, Plan(10, 1, 0.75, 10 + 1, 1)),
        ([{"CPU": 8}] * 3, "cpu", None, Plan(3, 0, 7, 3, 1)),
        ([{"CPU": 64}, {"CPU": 4}], "cpu", None, Plan(2, 0, 31, 2 + 4, 1)),  # 3 cores each would waste 60
        ([{"CPU": 8}] * 2, "cpu", 5, Plan(5, 0, 2, 2 + 4, 1)),
        ([{"CPU": 2}], "cpu", 4, Plan(4, 0, 0.25, 1, 1)),
        ([{"CPU": 1}], "cpu", None, Plan(1, 0, 0.5, 1, 0.5)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 0}], "cpu", None, Plan(1, 0, 7, 1, 1)),
    ],
)
def test_plans(nodes, device, workers, expected):
    plan = make_plan(nodes, device, workers)
    assert plan == expected
    assert_fits(nodes, plan)


def test_plans_that_cannot_be():
    for nodes, device, workers, message in [
        ([{"GPU": 1}], "cpu", None, "no machine of the Ray cluster has cores"),
        ([{"CPU": 8}], "cuda", None, "the Ray cluster has 0"),
        ([{"CPU": 8}, {"GPU": 2}], "cuda", None, "the Ray cluster has 0"),  # a process needs a core beside its GPU
        ([{"CPU": 1}], "cpu", 51, "51 are too many for the 1 cores of the Ray cluster"),
    ]:
        with pytest.raises(UserError, match=message):
            make_plan(nodes, device, workers)


def assert_fits(nodes, plan):
    """All models find their place on single machines, and readers in what is left, whatever comes first."""
    cores = [node.get("CPU", 0) for node in nodes]
    gpus = [node.get("GPU", 0) for node in nodes]
    for _ in range(plan.workers):
        place = next(i for i in range(len(nodes)) if cores[i] >= plan.cpus - 1e-9 and gpus[i] >= plan.gpus)
        cores[place], gpus[place] = cores[place] - plan.cpus, gpus[place] - plan.gpus
    assert any(own >= plan.reader_cpus - 1e-9 for own in cores)
    assert plan.readers >= 1
    assert plan.threads <= max(1, plan.cpus)


@given(
    st.lists(st.tuples(st.integers(0, 96), st.integers(0, 8)), min_size=1, max_size=6),
    st.sampled_from(["cpu", "cuda"]),
    st.none() | st.integers(1, 20),
)
def test_any_plan_fits_its_cluster(sizes, device, workers):
    nodes = [{"CPU": cores, "GPU": gpus if cores else 0} for cores, gpus in sizes]
    has_gpus = sum(node["GPU"] for node in nodes)
    if not any(cores for cores, _ in sizes) or (device == "cuda" and not 0 < (workers or has_gpus) <= has_gpus):
        with pytest.raises(UserError, match="Ray cluster"):
            make_plan(nodes, device, workers)
    else:
        assert_fits(nodes, make_plan(nodes, device, workers))


def test_rows_are_images_by_path_by_bytes_or_as_datasets_has_them(album, tmp_path):
    odd = os.fsdecode(b"\xff.png")
    (tmp_path / "paths.txt").write_bytes(b"00.png\r\n\n\xff.png\n/a.png")
    assert list(table_images(_paths(tmp_path / "paths.txt"), album)) == [
        ("00.png", album / "00.png"),
        (image_name(odd, 0), album / odd),
        ("/a.png", Path("/a.png")),
    ]
    assert list(table_images(_paths(album), tmp_path)) == [(str(path), path) for path in sorted(album.iterdir())]
    content = (album / "00.png").read_bytes()
    assert list(table_images(pa.table({"image": ["00.png"]}), album)) == [("00.png", album / "00.png")]
    assert list(table_images(pa.table({"image": [content, None], "image_id": [3, 4]}), album)) == [
        ("3", content),
        ("4", b""),
    ]
    images = [str(album / "00.png"), {"bytes": content, "path": "x.png"}, {"bytes": content}]
    rows = datasets.Dataset.from_dict({"image": images, "image_id": ["a", "b", "c"]}, datasets.Features(
        {"image": datasets.Image(), "image_id": datasets.Value("string")}))  # fmt: skip
    rows.to_parquet(tmp_path / "rows.parquet")
    assert list(table_images(pq.read_table(tmp_path / "rows.parquet"), tmp_path)) == [
        ("a", album / "00.png"),
        ("b", content),
        ("c", content),
    ]


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def torn(table, path, **_):
        path.write_bytes(b"PAR1")
        raise OSError("no space")

    monkeypatch.setattr(stages, "write_parquet", torn)
    with pytest.raises(OSError, match="no space"):
        write_rows(pa.table({"image": ["a"], "labels": [[]], "error": ["broken"]}), tmp_path)
    assert list(tmp_path.iterdir()) == []
