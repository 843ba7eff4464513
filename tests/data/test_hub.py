"""Any `datasets` data set against the plain lists that it was written from; nothing asks the network."""

import errno
import io
import json
import logging
import os
import tarfile
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SHARED
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from ovml import UserError
from ovml.cli.main import machine_fault
from ovml.data.hub.datamodule import HubDataModule
from ovml.data.hub.load import LoadedSet
from ovml.data.labels import LabelReader
from ovml.vocabulary import LabelVocabulary

NAMES = ["boat", "cat", "dog", "red car"]
LISTED = [["cat"], ["dog", "cat", "dog"], [], ["red car", "boat"], ["boat"], None, ["dog"]] * 2
"""Labels of row i; its picture is grey of value 10 * i."""
SIZES = {"train": len(LISTED), "test": 5}


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (10 * number,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def ids(labels):
    return None if labels is None else [NAMES.index(label) for label in labels]


def indicator(labels):
    return [int(name in (labels or ())) for name in NAMES]


KINDS = {
    "class ids": (List(ClassLabel(names=NAMES)), ids),
    "ids": (List(Value("int64")), ids),
    "names": (List(Value("string")), lambda labels: labels),
    "indicator": (List(Value("int8")), indicator),
    "one id": (ClassLabel(names=NAMES), lambda labels: NAMES.index(labels[0]) if labels else None),
    "one name": (Value("string"), lambda labels: labels[0] if labels else None),
}


def rows(kind="names", size=14, **extra):
    feature, form = KINDS[kind]
    features = {"picture": datasets.Image(), "tags": feature, "key": Value("string")}
    columns = {
        "picture": [{"bytes": png(i), "path": f"{i}.png"} for i in range(size)],
        "tags": [form(labels) for labels in LISTED[:size]],
        "key": [f"row {i}" for i in range(size)],
    }
    for name, (values, feature) in extra.items():
        columns[name], features[name] = values[:size], feature
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # `datasets` sleeps after it streamed Parquet files, lest threads outlive the interpreter.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def arguments(path):
    return {"path": str(path), "image_column": "picture", "label_column": "tags"}


def write_parquet(folder, kind="names", shards=1, **extra):
    folder.mkdir(exist_ok=True)
    for split, size in SIZES.items():
        for shard in range(shards):
            part = rows(kind, size, **extra).shard(shards, shard)
            part.to_parquet(folder / f"{split}-{shard:05}-of-{shards:05}.parquet")
    return arguments(folder)


def write_saved(folder):
    DatasetDict({split: rows("class ids", size) for split, size in SIZES.items()}).save_to_disk(folder)
    return arguments(folder)


def write_folder(folder):
    for split, size in SIZES.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for i in range(size):
            (folder / split / f"{i}.png").write_bytes(png(i))
            lines.append(json.dumps({"file_name": f"{i}.png", "tags": LISTED[i], "key": f"row {i}"}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))
    return {**arguments(folder), "image_column": "image"}


def write_tars(folder, shards=5):
    folder.mkdir()
    for split, size in SIZES.items():
        for shard in range(shards):
            with tarfile.open(folder / f"{split}-{shard}.tar", "w") as tar:
                for i in range(shard, size, shards):
                    about = json.dumps({"labels": LISTED[i], "source": {"width": 20}})
                    for extension, content in (("png", png(i)), ("json", about.encode())):
                        member = tarfile.TarInfo(f"row {i}.{extension}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    files = {split: str(folder / f"{split}-*.tar") for split in SIZES}
    return {**arguments("webdataset"), "data_files": files, "image_column": "png", "label_column": "json.labels"}


def plain_marks(labels, unlisted=0):
    return [1 if name in (labels or ()) else unlisted for name in NAMES]


def check(data, loader, size, marks):
    """Every row once, with its own picture and its own labels; ids end in the row's number."""
    seen = {}
    for batch in loader:
        for image_id, pixels, labels in zip(batch["image_id"], batch["pixel_values"], batch["labels"], strict=True):
            number = int("".join(c for c in image_id if c.isdigit()))
            assert number not in seen
            seen[number] = labels.tolist()
            assert torch.equal(pixels, data.image_processor.pixels(Image.new("RGB", (20, 16), (10 * number,) * 3)))
    assert seen == {i: marks(LISTED[i]) for i in range(size)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_label_follows_a_plain_reading(tmp_path, tiny, kind, streaming):
    labels = NAMES if kind in ("ids", "indicator") else None
    form = "indicator" if kind == "indicator" else "list"
    given = {**write_parquet(tmp_path, kind), "labels": labels, "label_format": form, "streaming": streaming}
    data = HubDataModule(**given, clip=tiny, batch_size=3)
    first = (lambda labels: plain_marks((labels or [])[:1])) if kind.startswith("one") else plain_marks
    assert data.vocabulary == LabelVocabulary(tuple(NAMES))
    check(data, data.test_dataloader(), SIZES["test"], first)
    check(data, data.val_dataloader(), SIZES["test"], first)  # there is no validation split: the test split serves


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [write_saved, write_folder, write_tars])
def test_every_kind_of_set_follows_a_plain_reading(tmp_path, tiny, write, streaming):
    data = HubDataModule(**write(tmp_path / "set"), streaming=streaming, clip=tiny, augment=False)
    assert data.vocabulary.seen == tuple(NAMES)
    for split, size in (("test", SIZES["test"]), ("train", SIZES["train"])):
        data.streamed_rows = size
        loader = data.test_dataloader() if split == "test" else data.train_dataloader()
        if write is write_folder and not streaming:  # numbers, as no column names the rows
            assert [row["image_id"] for row in data.dataset("test").remove_columns("image")] == list("01234")
        elif write is write_folder:  # full paths, which hold numbers of their own
            loader = [{**batch, "image_id": [i.rsplit("/", 1)[1] for i in batch["image_id"]]} for batch in loader]
        check(data, loader, size, plain_marks)


def test_pictures_are_neither_copied_nor_decoded(tmp_path, tiny, monkeypatch):
    data = HubDataModule(**write_saved(tmp_path / "set"), clip=tiny)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    made = data.dataset("train")
    assert {row["image"]["path"] for row in made.cast_column("image", datasets.Image(decode=False))} >= {"0.png"}
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert written
    assert all(b"PNG" not in path.read_bytes() for path in written)


def test_rows_beyond_the_first_chunk_have_their_own_labels_and_numbers(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("ovml.data.hub.rows.CHUNK", 4)
    given = write_parquet(tmp_path / "set")
    data = HubDataModule(**given, clip=tiny)
    found = data.dataset("train").remove_columns("image")
    assert found["image_id"][:] == [str(i) for i in range(14)]
    assert [[NAMES[i] for i in positive] for positive in found["positive"][:]] == [
        sorted(set(labels or ())) for labels in LISTED
    ]
    few = HubDataModule(**given, labels=["cat", "dog", "red car"], clip=tiny)
    with pytest.raises(UserError, match=r"split 'train', row 3: label 'boat'"):
        few.dataset("train")
    few = HubDataModule(**{**given, "splits": {"test": "train"}}, labels=["cat", "dog", "boat"], clip=tiny)
    few.source.splits["train"] = few.source.splits["train"].select([0, 1, 2, 4, 5, 6, 3])
    with pytest.raises(UserError, match=r"row 6: label 'red car'"):
        few.dataset("train")


@pytest.mark.parametrize("label", [True, False, np.bool_(True), 0.0, [0]])
def test_labels_that_are_neither_numbers_nor_names(label):
    with pytest.raises(UserError, match="x: label .* is neither an id nor a name"):
        LabelReader(LabelVocabulary(tuple(NAMES))).read([label], "x")


def test_labels_are_read_once(tmp_path, tiny, monkeypatch):
    given = write_parquet(tmp_path / "set")
    first = HubDataModule(**given, clip=tiny).dataset("train")
    monkeypatch.setattr(LabelReader, "read", lambda *_: pytest.fail("read again"))
    again = HubDataModule(**given, clip=tiny)
    monkeypatch.setattr("ovml.data.hub.datamodule.as_list", lambda _: pytest.fail("collected again"))
    assert again.vocabulary.seen == tuple(NAMES)
    assert again.dataset("train")[:]["positive"] == first[:]["positive"]


def test_absent_labels_have_a_column_of_their_own(tmp_path, tiny):
    negative = [["dog"], [], None, ["cat"], ["cat", "red car"]] * 3
    given = write_parquet(tmp_path / "set", no=(negative, List(Value("string"))))
    data = HubDataModule(**given, negative_column="no", id_column="key", exhaustive=False, clip=tiny)
    (batch,) = data.test_dataloader()
    assert batch["image_id"] == [f"row {i}" for i in range(5)]
    for labels, absent, marks in zip(LISTED, negative, batch["labels"].tolist(), strict=False):
        assert marks == [1 if n in (labels or ()) else 0 if n in (absent or ()) else -1 for n in NAMES]


def test_ids_of_absent_labels_have_names_of_their_own(tmp_path, tiny):
    other = ["dog", "red car"]
    given = write_parquet(tmp_path / "set", "class ids", no=([[1], []] * 7, List(ClassLabel(names=other))))
    data = HubDataModule(**given, negative_column="no", labels=NAMES, exhaustive=False, clip=tiny)
    assert data.dataset("test")["negative"][:] == [[3], [], [3], [], [3]]
    given |= {"labels": NAMES[:3], "unknown_labels": "skip"}
    assert (
        HubDataModule(**given, negative_column="no", exhaustive=False, clip=tiny).dataset("test")["negative"][:]
        == [[]] * 5
    )


def test_vocabulary_is_chosen_by_lists_and_files(tmp_path, tiny):
    given = write_parquet(tmp_path / "set", "class ids")
    (tmp_path / "unseen.txt").write_text("Red  Car\nboat\n")
    data = HubDataModule(**given, unseen=str(tmp_path / "unseen.txt"), clip=tiny)
    assert data.vocabulary == LabelVocabulary(("cat", "dog"), ("Red  Car", "boat"))
    assert data.dataset("test")[3]["positive"] == [2, 3]
    few = HubDataModule(**given, labels=["dog"], unseen=["cat"], clip=tiny)
    with pytest.raises(UserError, match=r"split 'test', row 3: label 'red car' is not in the vocabulary; add it to"):
        few.dataset("test")


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_outside_the_vocabulary_are_left_out_and_counted(tmp_path, tiny, caplog, streaming):
    given = {**write_parquet(tmp_path / "set"), "labels": ["dog", "cat"], "unknown_labels": "skip"}
    data = HubDataModule(**given, streaming=streaming, clip=tiny)
    for _ in range(2):
        positive = [row["positive"] for row in data.dataset("test").remove_columns("image")]
    assert positive == [[1], [0, 1], [], [], []]
    if not streaming:
        with caplog.at_level(logging.WARNING, "ovml"):
            HubDataModule(**given, clip=tiny).dataset("test")
        assert "split 'test': 3 annotations of labels outside the vocabulary left out" in caplog.text


def test_splits_are_named_or_held_out(tmp_path, tiny):
    given = write_parquet(tmp_path / "set")
    data = HubDataModule(**given, validation_size=4, id_column="key", clip=tiny)
    train, held = (
        {row["image_id"] for row in data.dataset(s).remove_columns("image")} for s in ("train", "validation")
    )
    assert len(held) == 4
    assert train | held == {f"row {i}" for i in range(SIZES["train"])}
    assert not train & held
    swapped = HubDataModule(**given, splits={"train": "test", "test": "train"}, clip=tiny)
    assert len(swapped.dataset("test")) == SIZES["train"]
    with pytest.raises(UserError, match=r"splits: there is no split 'dev', only 'train', 'test'"):
        HubDataModule(**given, splits={"validation": "dev"}, clip=tiny).dataset("validation")
    with pytest.raises(UserError, match=r"validation_size must be less than the 14 training images; got 14"):
        HubDataModule(**given, validation_size=14, clip=tiny).dataset("train")


@pytest.mark.parametrize("write", [write_tars, lambda folder: write_parquet(folder, shards=5)])
def test_every_streamed_row_is_evaluated_once_over_processes_and_workers(tmp_path, tiny, write):
    data = HubDataModule(**write(tmp_path / "set"), streaming=True, num_workers=2, batch_size=2, clip=tiny)
    data.splits = {"test": "train"}
    loaders = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        loaders.append(data.test_dataloader())
    check(data, (batch for loader in loaders for batch in loader), SIZES["train"], plain_marks)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("world", [1, 2])
def test_streamed_training_gives_every_process_its_share(tmp_path, tiny, shards, world):
    given = {**write_parquet(tmp_path / "set", shards=shards), "id_column": "key"}
    data = HubDataModule(**given, streaming=True, streamed_rows=13, shuffle_buffer=4, num_workers=2, clip=tiny)
    data.eval_batch_size = data.batch_size = 3
    seen = []
    for rank in range(world):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        loader = data.train_dataloader()
        seen.append([i for batch in loader for i in batch["image_id"]])
        assert len(seen[-1]) == len(loader.dataset) == 13 // world
    # The shares follow the shards, so within an epoch no more rows come twice than shards differ in size.
    assert len({i for part in seen for i in part}) >= 13 - 2 * shards


def test_streamed_training_knows_its_length_from_the_set_or_is_told(tmp_path, tiny):
    saved = HubDataModule(**write_saved(tmp_path / "set"), streaming=True, clip=tiny)
    assert len(saved.train_dataloader().dataset) == SIZES["train"]
    tars = HubDataModule(**write_tars(tmp_path / "tars"), streaming=True, clip=tiny)
    with pytest.raises(UserError, match=r"its number of rows is not known.*streamed_rows=N"):
        tars.train_dataloader()


def test_a_stream_without_names_takes_file_names_or_digests(tmp_path, tiny):
    given = {**write_parquet(tmp_path / "set"), "streaming": True}
    named = [row["image_id"] for row in HubDataModule(**given, clip=tiny).dataset("test")]
    assert named == [f"{i}.png" for i in range(5)]
    for path in (tmp_path / "set").glob("*.parquet"):
        rows = Dataset.from_parquet(str(path)).cast_column("picture", datasets.Image(decode=False))
        rows.map(lambda row: {"picture": {"bytes": row["picture"]["bytes"], "path": None}}).to_parquet(path)
    digests = [row["image_id"] for row in HubDataModule(**given, clip=tiny).dataset("test")]
    assert len(set(digests)) == 5
    assert {len(digest) for digest in digests} == {16}


def test_columns_of_paths_and_of_bytes_are_pictures_too(tmp_path, tiny):
    for i in range(14):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    extra = {
        "path": ([str(tmp_path / f"{i}.png") for i in range(14)], Value("string")),
        "content": ([png(i) for i in range(14)], Value("binary")),
    }
    given = write_parquet(tmp_path / "set", **extra)
    for column in extra:
        for streaming in (False, True):
            given |= {"image_column": column, "id_column": "key", "streaming": streaming, "allow_outside": True}
            data = HubDataModule(**given, clip=tiny)
            check(data, data.test_dataloader(), 5, plain_marks)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("fields", [("bytes", "path"), ("path", "bytes")])
def test_structs_of_bytes_and_paths_are_pictures_too(tmp_path, tiny, fields, streaming):
    """Parquet as pandas writes it, without the types of `datasets`."""
    for split, size in SIZES.items():
        pictures = [{"bytes": png(i), "path": f"{i}.png"} for i in range(size)]
        columns = {
            "picture": pa.StructArray.from_arrays(
                [pa.array(picture[field] for picture in pictures) for field in fields], fields
            ),
            "tags": pa.array(LISTED[:size], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    data = HubDataModule(**arguments(tmp_path), streaming=streaming, clip=tiny)
    assert data.vocabulary.seen == tuple(NAMES)
    check(data, data.test_dataloader(), SIZES["test"], plain_marks)


def test_real_photographs_in_structs_are_read(tmp_path, tiny):
    file = SHARED / "photos" / "coco_photos.parquet"
    if not file.is_file():
        pytest.skip(f"the photographs are not here: {file}")
    data = HubDataModule("parquet", data_files={"test": str(file)}, labels=["dog"], unknown_labels="skip", clip=tiny)
    data.splits = {"train": "test"}
    rows = pq.read_table(file)
    assert len(data.dataset("test")) == len(rows)
    batch = next(iter(data.test_dataloader()))
    named = [int("dog" in labels) for labels in rows["labels"][: len(batch["labels"])].to_pylist()]
    assert batch["labels"][:, 0].tolist() == named
    expected = data.image_processor.pixels(Image.open(io.BytesIO(rows["image"][0]["bytes"].as_py())).convert("RGB"))
    assert torch.equal(batch["pixel_values"][0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_column": "image"},
            r"no image column 'image'; the columns are 'picture', .*; take 'picture' \(image_column=picture",
        ),
        ({"image_column": "number"}, r"column 'number' holds Value\('int64'\), not images"),
        (
            {"label_column": "label"},
            r"data.label_column: there is no column 'label'; the columns are 'picture', 'tags'",
        ),
        ({"label_column": "about.tags"}, r"'about' has no 'tags'; it has 'size'"),
        ({"id_column": "name"}, r"data.id_column: there is no column 'name'"),
        ({"label_column": "number"}, r"column 'number' holds ids without names; give the names .*labels=FILE"),
        ({"label_column": "number", "labels": NAMES}, r"split 'test', row 4: label id 4 is out of range 0..3"),
        ({"label_column": "share", "labels": NAMES}, r"split 'test', row 0: label 0.5 is neither an id nor a name"),
        (
            {"labels": ["cat", "dog"]},
            r"row 3: label 'red car' is not in the vocabulary; add it to labels or unseen, or",
        ),
        ({"label_format": "indicator", "labels": NAMES}, r"row 0: the indicator vector has 1 entries for 4 labels"),
        ({"label_format": "indicator", "label_column": "vector", "labels": NAMES}, r"row 0: .* holds 2; .* 0 or 1"),
        ({"label_column": "coded", "labels": ["cat", "cow"]}, r"label 'cow' is none of the 4 labels of column 'coded'"),
        ({"splits": {"test": "dev"}}, r"there is no split 'dev', only 'train', 'test'"),
        ({"labels": "none.txt"}, r"there is no file 'none.txt'; names are given as a list"),
        ({"data_files": {"train": "*.csv"}}, r"cannot be loaded \(.*\); check data_files"),
        ({"name": "other"}, r"cannot be loaded \(.*other.*\); check path and name"),
        ({"path": "/no/such/folder"}, r"/no/such/folder: no such folder; give one, or the name"),
        ({"path": __file__}, r"is a file; give its folder, or its type as path"),
        (
            {"path": "someone/birds"},
            r"someone/birds: not in the cache, and the Hub cannot be reached.*; connect to the",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_is_said_in_one_line(tmp_path, tiny, change, message, streaming):
    if streaming and "out of range" in message:
        message = message.replace("row 4", "row 4.png")
    elif streaming:
        message = message.replace("row 0", "row 0.png").replace("row 3", "row 3.png")
    extra = {
        "number": (list(range(14)), Value("int64")),
        "share": ([0.5] * 14, Value("float32")),
        "vector": ([[2, 0, 0, 0]] * 14, List(Value("int8"))),
        "about": ([{"size": 1}] * 14, {"size": Value("int64")}),
        "coded": ([[0]] * 14, List(ClassLabel(names=NAMES))),
    }
    data = HubDataModule(
        **{**write_parquet(tmp_path / "set", **extra), "streaming": streaming, "exhaustive": True, **change}, clip=tiny
    )
    with pytest.raises(UserError, match=message) as caught:
        list(data.dataset("test"))
    assert "\n" not in str(caught.value)


def test_arguments_that_contradict_each_other(tmp_path, tiny):
    for given, message in (
        ({"splits": {"val": "dev"}}, r"data.splits: 'val' is none of train, validation, test"),
        ({"negative_column": "no"}, r"negative_column has no effect .*exhaustive=false"),
        ({"validation_size": 3, "streaming": True}, r"validation_size: a stream cannot be split"),
    ):
        with pytest.raises(UserError, match=message):
            HubDataModule("set", **given, clip=tiny)


def test_splits_that_are_missing_or_empty(tmp_path, tiny):
    given = write_parquet(tmp_path / "set")
    for path in (tmp_path / "set").glob("test-*"):
        path.unlink()
    data = HubDataModule(**given, clip=tiny)
    with pytest.raises(UserError, match=r"there is no test split, only 'train'; name one in data.splits"):
        data.dataset("test")
    with pytest.raises(UserError, match=r"no validation split, only 'train'; name one .*validation_size=N"):
        data.dataset("validation")
    data.source = LoadedSet({"train": rows(), "test": rows(size=0)}, "key", {})
    with pytest.raises(UserError, match=r"split 'test', the test split, has no row"):
        data.dataset("test")


def test_a_disk_that_fills_up_while_the_set_is_prepared_is_named(tmp_path, tiny, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache/set.arrow")

    given = write_parquet(tmp_path / "set")
    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.write_table", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        HubDataModule(**given, clip=tiny).dataset("train")
    assert isinstance(caught.value.__cause__, datasets.exceptions.DatasetGenerationError)
    assert machine_fault(caught.value).startswith("cache/set.arrow: No space left on device; make room")


def test_labels_that_were_skipped_once_are_not_skipped_where_that_is_not_asked_for(tmp_path, tiny):
    given = {**write_parquet(tmp_path / "set"), "labels": ["dog", "cat"], "clip": tiny}
    assert len(HubDataModule(**given, unknown_labels="skip").dataset("test")) == SIZES["test"]
    with pytest.raises(UserError, match="label 'red car' is not in the vocabulary"):
        HubDataModule(**given).dataset("test")
