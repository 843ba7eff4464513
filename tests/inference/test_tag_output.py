import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import one_thread
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovml import OpenVocabularyModel, Tagger, UserError
from ovml.inference import tag_files, tag_output
from ovml.inference.tag_files import image_name, tag_row
from ovml.inference.tag_output import Written, write_tags
from ovml.inference.tagger import LabelScore

KINDS = ["jsonl", "csv", "parquet"]
ODD = [
    "plain",
    'a "quoted" name',
    "two\nlines",
    "Roß, 漢字",
    "carriage\r\nreturn",
    "return\ralone",
    "tab\t;",
    "'",
    "\u2028",
    "\\n",
]


class StandIn:
    """A tagger whose result depends on the image's name alone."""

    def __init__(self, batch_size=4, top_k=3, **settings):
        self.batch_size, self.top_k = batch_size, top_k
        self._settings = {"model": "m", "labels": "l", "top_k": top_k, "threshold": None, **settings}
        self.asked, self.errors = [], 0

    def settings(self):
        return self._settings

    def tag(self, images, on_error):
        assert on_error == "row"
        for image in images:
            self.asked.append(image)
            result = self.result(str(image))
            self.errors += isinstance(result, UserError)
            yield image, result

    def result(self, name):
        number = sum(map(ord, name))
        if number % 5 == 0:
            return UserError(f'{name}: "broken"\nimage')
        return [LabelScore(ODD[(number + i) % len(ODD)], 1 / (number + i)) for i in range(number % (self.top_k + 1))]


def names(count):
    return [f"{i}-{ODD[i % len(ODD)]}.png" for i in range(count)]


def content(path):
    """What a file holds: its bytes, or its rows where it is Parquet."""
    return pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_bytes()


def rows_of(path):
    """Image, labels and error of each row, read with the standard library or PyArrow."""
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                pairs = [(row[f"label_{i}"], row[f"score_{i}"]) for i in range(1, 4) if row[f"score_{i}"]]
                yield row["image"], [(label, float(score)) for label, score in pairs], row["error"] or None
        return
    rows = map(json.loads, path.read_bytes().decode().split("\n")[:-1]) if path.suffix == ".jsonl" else content(path)
    for row in rows:
        yield row["image"], [(label["label"], label["score"]) for label in row["labels"]], row["error"]


class Cut(Exception):
    """The power goes off."""


def cut_after(rows, at_cut=lambda: None):
    def on_rows(written):
        if written.rows - written.resumed >= rows:
            at_cut()
            raise Cut

    return on_rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_written_as_it_is(tmp_path, kind):
    tagger, images, out = StandIn(), names(23), tmp_path / "new" / f"tags.{kind}"
    seen = []
    written = write_tags(tagger, iter(images), out, on_rows=seen.append)
    rows = list(rows_of(out))
    assert [row[0] for row in rows] == images
    for image, labels, error in rows:
        expected = tagger.result(image)
        if isinstance(expected, UserError):
            assert (labels, error) == ([], str(expected))
        else:
            assert error is None
            assert labels == [(label, pytest.approx(score, abs=1e-6)) for label, score in expected]
    errors = sum(error is not None for _, _, error in rows)
    assert written == Written(rows=23, resumed=0, errors=errors)
    assert [w.rows for w in seen] == [0, 4, 8, 12, 16, 20, 23]
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_gives_an_empty_file(tmp_path, kind):
    out = tmp_path / f"tags.{kind}"
    assert write_tags(StandIn(), [], out).rows == 0
    assert list(rows_of(out)) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 9, 23])
@pytest.mark.parametrize("how", ["exception", "kill"])
def test_an_interrupted_file_is_gone_on_with(tmp_path, monkeypatch, kind, rows, how):
    monkeypatch.setattr(tag_files, "GROUP_LABELS", 10)  # a few batches a row group
    images, whole, out = names(23), tmp_path / f"whole.{kind}", tmp_path / "cut" / f"tags.{kind}"
    write_tags(StandIn(), images, whole)
    disk = tmp_path / "disk"
    with pytest.raises(Cut):
        write_tags(StandIn(), images, out, on_rows=cut_after(rows, lambda: shutil.copytree(out.parent, disk)))
    if how == "kill":  # nothing is put in order any more
        shutil.rmtree(out.parent)
        disk.rename(out.parent)
    assert not out.exists()
    again = StandIn()
    written = write_tags(again, iter(images), out)
    assert content(out) == content(whole)
    assert written.rows == 23
    if how == "exception" and rows < 23:
        assert written.resumed == -(-rows // 4) * 4  # what was tagged was kept, by whole batches
    assert again.asked == images[written.resumed :]
    assert os.listdir(out.parent) == [out.name]


@given(cut=st.integers(0, 3000), kind=st.sampled_from(KINDS), batch_size=st.integers(1, 30))
def test_a_part_torn_at_any_byte_is_gone_on_with(tmp_path_factory, cut, kind, batch_size):
    folder = tmp_path_factory.mktemp("torn")
    whole, rows, out = folder / f"whole.{kind}", folder / "rows.jsonl", folder / f"tags.{kind}"
    write_tags(StandIn(), names(23), whole)
    write_tags(StandIn(), names(23), rows)
    (folder / f"tags.{kind}.part").write_bytes(rows.read_bytes()[:cut])
    (folder / f"tags.{kind}.part.json").write_text(json.dumps(StandIn().settings()))
    again = StandIn(batch_size)
    write_tags(again, names(23), out)
    assert content(out) == content(whole)
    full_rows = 23 - len(again.asked)
    assert full_rows % batch_size == 0
    if cut >= len(rows.read_bytes()):
        assert len(again.asked) == 23 % batch_size


@pytest.mark.parametrize("kind", KINDS)
def test_the_part_is_json_lines_that_grow_with_each_batch(tmp_path, kind):
    rows, out = tmp_path / "rows.jsonl", tmp_path / f"tags.{kind}"
    write_tags(StandIn(), names(23), rows)
    lines, seen = rows.read_bytes().splitlines(keepends=True), []
    part = tmp_path / f"tags.{kind}.part"
    write_tags(StandIn(), names(23), out, on_rows=lambda written: seen.append((written.rows, part.read_bytes())))
    assert seen == [(count, b"".join(lines[:count])) for count in (0, 4, 8, 12, 16, 20, 23)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("how", ["exception", "kill"])
def test_a_conversion_that_is_cut_off_loses_no_row(tmp_path, monkeypatch, kind, how):
    monkeypatch.setattr(tag_files, "GROUP_LABELS", 10)
    whole, out = tmp_path / f"whole.{kind}", tmp_path / "cut" / f"tags.{kind}"
    write_tags(StandIn(), names(23), whole)
    write = getattr(tag_output, f"write_{kind}")

    def cut_off(rows, path, *more):
        write(list(rows)[:10], path, *more)
        shutil.copytree(out.parent, tmp_path / "disk")
        raise Cut

    monkeypatch.setattr(tag_output, f"write_{kind}", cut_off)
    with pytest.raises(Cut):
        write_tags(StandIn(), names(23), out)
    monkeypatch.setattr(tag_output, f"write_{kind}", write)
    assert not out.exists()
    if how == "kill":
        shutil.rmtree(out.parent)
        (tmp_path / "disk").rename(out.parent)
        (beside,) = out.parent.glob(".*.part-*")
        name, _, own = beside.name.rsplit("-", 2)
        beside.rename(out.parent / f"{name}-{2**22 + 1}-{own}")  # of a process that is dead
    again = StandIn()
    assert write_tags(again, names(23), out)[:2] == (23, 20)
    assert again.asked == names(23)[20:]
    assert content(out) == content(whole)
    assert os.listdir(out.parent) == [out.name]


def test_two_processes_do_not_write_one_file(tmp_path):
    out, lock = tmp_path / "tags.jsonl", tmp_path / ".tags.jsonl.lock"
    command = f"import fcntl, sys; f = open({str(lock)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{command}; sys.stdin.read()"], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=r"tags.jsonl: another process writes it; wait for it"):
            write_tags(StandIn(), names(3), out)
        assert sorted(os.listdir(tmp_path)) == [lock.name]
        other.stdin.close()
    assert write_tags(StandIn(), names(3), out).rows == 3
    assert os.listdir(tmp_path) == [out.name]


def test_row_groups_have_some_size(tmp_path, monkeypatch):
    write_tags(StandIn(), names(200), tmp_path / "small.parquet")
    assert pq.ParquetFile(tmp_path / "small.parquet").num_row_groups == 1
    monkeypatch.setattr(tag_files, "GROUP_LABELS", 30)
    write_tags(StandIn(), names(200), tmp_path / "groups.parquet")
    assert 2 < pq.ParquetFile(tmp_path / "groups.parquet").num_row_groups < 50
    assert content(tmp_path / "groups.parquet") == content(tmp_path / "small.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_are_refused(tmp_path, kind):
    out = tmp_path / f"tags.{kind}"
    with pytest.raises(Cut):
        write_tags(StandIn(), names(23), out, on_rows=cut_after(8))
    with pytest.raises(UserError, match=rf"tags\.{kind}\.part: begun with another model, threshold; .*overwrite=True"):
        write_tags(StandIn(model="n", threshold=0.5), names(23), out)
    with pytest.raises(UserError, match="begun with another top_k"):
        write_tags(StandIn(top_k=2), names(23), out)
    assert write_tags(StandIn(top_k=2), names(23), out, overwrite=True).resumed == 0
    with pytest.raises(UserError, match=rf"tags\.{kind}: exists already; .*overwrite=True"):
        write_tags(StandIn(), names(23), out)
    assert write_tags(StandIn(), names(3), out, overwrite=True).rows == 3
    assert len(list(rows_of(out))) == 3
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize("kind", KINDS)
def test_other_images_are_refused(tmp_path, kind):
    out, images = tmp_path / f"tags.{kind}", names(23)
    with pytest.raises(Cut):
        write_tags(StandIn(), images, out, on_rows=cut_after(8))
    with pytest.raises(UserError, match=r"part: begun with other images: row 8 is 7-.*, now image 8 is 8-"):
        write_tags(StandIn(), images[1:], out)
    with pytest.raises(UserError, match="now there are 5 images"):
        write_tags(StandIn(), images[:5], out)
    assert write_tags(StandIn(), images[:10], out).rows == 10


def test_settings_that_are_lost_are_named(tmp_path):
    (tmp_path / "tags.csv.part").write_text("something")
    with pytest.raises(UserError, match=r"tags\.csv\.part\.json: the settings .* cannot be read; delete .*tags\.csv\."):
        write_tags(StandIn(), names(3), tmp_path / "tags.csv")
    (tmp_path / "tags.csv.part.json").write_text("3")
    with pytest.raises(UserError, match="cannot be read"):
        write_tags(StandIn(), names(3), tmp_path / "tags.csv")
    assert (tmp_path / "tags.csv.part").read_text() == "something"


DAMAGE = {
    "NUL": b"\0" * 700,
    "NUL in a line": b"\0" * 9 + b"\n",
    "half a row": b'{"image": "0-pl\n',
    "other keys": b"{}\n",
    "a list": b"[3]\n",
    "no JSON": b"\xff\n",
    "no name": b'{"image": 3, "labels": [], "error": null}\n',
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [0, 2, 5, 8, 11])
@pytest.mark.parametrize("damage", DAMAGE)
def test_images_of_damaged_rows_are_tagged_again(tmp_path, kind, row, damage):
    whole, out = tmp_path / f"whole.{kind}", tmp_path / "cut" / f"tags.{kind}"
    write_tags(StandIn(), names(23), whole)
    with pytest.raises(Cut):
        write_tags(StandIn(), names(23), out, on_rows=cut_after(12))
    part = out.with_name(f"{out.name}.part")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:row], DAMAGE[damage], *lines[row + 1 :]]))
    again = StandIn()
    assert write_tags(again, names(23), out) == Written(23, row // 4 * 4, again.errors)
    assert again.asked == names(23)[row // 4 * 4 :]
    assert content(out) == content(whole)
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_row_that_is_damaged_during_the_run_is_named_and_resumed(tmp_path, kind):
    whole, out = tmp_path / f"whole.{kind}", tmp_path / "cut" / f"tags.{kind}"
    part = out.with_name(f"{out.name}.part")
    write_tags(StandIn(), names(23), whole)

    def damage(written):
        if written.rows == 23:
            lines = part.read_bytes().splitlines(keepends=True)
            part.write_bytes(b"".join([*lines[:6], b"\0" * 9 + b"\n", *lines[7:]]))

    with pytest.raises(UserError, match=rf"tags\.{kind}\.part: row 7 is damaged; run the same command again"):
        write_tags(StandIn(), names(23), out, on_rows=damage)
    assert sorted(os.listdir(out.parent)) == [part.name, f"{part.name}.json"]
    assert write_tags(StandIn(), names(23), out)[:2] == (23, 4)
    assert content(out) == content(whole)


def test_places_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for out, message in [
        ("tags.txt", r"tags\.txt: cannot tell what to write; let the name end in \.jsonl, \.csv, \.parquet"),
        ("tags", "cannot tell what to write"),
        ("file/tags.csv", r"tags\.csv: cannot be written"),
        ("folder.csv", "is a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            write_tags(StandIn(), names(3), tmp_path / out, overwrite=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tag_output, "write_parquet", full)
    with pytest.raises(UserError, match="cannot be written .No space left on device.; choose another place"):
        write_tags(StandIn(), names(3), tmp_path / "tags.parquet")


def test_names_of_images(tmp_path):
    assert image_name(tmp_path / "a.png", 3) == f"{tmp_path}/a.png"
    assert image_name(np.zeros((2, 2)), 3) == "3"
    path = os.fsdecode(b"\xff\xe9t\xc3\xa9.png")
    assert image_name(path, 0) == "\\xff\\xe9té.png"
    for kind in KINDS:
        out = tmp_path / f"odd.{kind}"
        with pytest.raises(Cut):
            write_tags(StandIn(1), [path, b"\xff", path], out, on_rows=cut_after(2))
        write_tags(StandIn(1), [path, b"\xff", path], out)
        assert [row[0] for row in rows_of(out)] == ["\\xff\\xe9té.png", "1", "\\xff\\xe9té.png"]
    assert tag_row("x", UserError(f"{path}: broken"))["error"] == "\\xff\\xe9té.png: broken"


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_tagger_cut_off_gives_what_the_unbroken_one_gives(tmp_path, tiny, kind, monkeypatch):
    monkeypatch.setattr(tag_files, "GROUP_LABELS", 8)
    with one_thread():
        images = [tmp_path / f"{i}.png" for i in range(11)]
        for i, path in enumerate(images):
            noise = np.random.default_rng(i).integers(0, 256, (50, 60, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        images[4].write_text("no image")
        tagger = Tagger(OpenVocabularyModel(tiny, ["cat", "dog", "sky"]), batch_size=3, prompt="a {}")
        assert tagger.write(images, tmp_path / f"whole.{kind}") == Written(11, 0, 1)
        out = tmp_path / f"tags.{kind}"
        with pytest.raises(Cut):
            tagger.write(images, out, on_rows=cut_after(6))
        with pytest.raises(UserError, match="begun with another prompt"):
            Tagger(OpenVocabularyModel(tiny, ["cat", "dog", "sky"])).write(images, out)
        assert tagger.write((path for path in images), out) == Written(11, 6, 0)
        assert content(out) == content(tmp_path / f"whole.{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_not_kept(tmp_path, monkeypatch, kind):
    """A long run holds no more than a short one."""
    import tracemalloc

    monkeypatch.setattr(tag_files, "GROUP_LABELS", 500)

    def peak(count):
        tracemalloc.start()
        write_tags(Forgetful(32), (f"{i}.png" for i in range(count)), tmp_path / f"tags.{kind}", overwrite=True)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    class Forgetful(StandIn):
        def tag(self, images, on_error):
            for image in images:
                yield image, [LabelScore("cat", 0.5)]

    peak(100)
    assert peak(10_000) < peak(1_000) + 50_000


def test_the_schema_of_parquet(tmp_path):
    write_tags(StandIn(), names(5), tmp_path / "tags.parquet")
    schema = pq.read_schema(tmp_path / "tags.parquet")
    assert schema.names == ["image", "labels", "error"]
    assert pa.types.is_list(schema.field("labels").type)
