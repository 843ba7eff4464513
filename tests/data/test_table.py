"""Annotations are read once; nothing half-written remains."""

import errno
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovml.cli.main import machine_fault
from ovml.data.cache import SAMPLE_BYTES, cached_folder, cached_table, ragged, record_batch
from ovml.data.image_files import check_images, image_folders, lost_paths, verify_images
from ovml.utils.errors import UserError


@pytest.fixture
def listing(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a.png\nb.png\n")
    return path


def maker(listing, calls):
    def make(counts):
        calls.append(1)
        names = listing.read_text().split()
        counts["images"] = len(names)
        for name in names:
            positive = ragged(np.array([0, 0]), np.array([3, 1]), 1)
            yield record_batch([str(listing.parent / name)], positive, None, [name])

    return make


def test_a_table_is_made_once_and_again_when_its_files_change(tmp_path, listing):
    calls = []

    def table(**settings):
        return cached_table(tmp_path / "cache", "set", [listing], settings, maker(listing, calls))

    first = table()
    assert first.counts == {"images": 2}
    assert first.rows["image_id"][:] == ["a.png", "b.png"]
    assert first.rows["positive"][:] == [[3, 1], [3, 1]]
    assert first.rows["negative"][:] == [[], []]
    assert first.rows.cache_files, "the rows are in memory, not mapped"
    assert table().rows.num_rows == 2
    assert len(calls) == 1
    table(other=1)
    assert len(calls) == 2
    listing.write_text("a.png\nb.png\nc.png\n")
    assert table().rows.num_rows == 3
    assert len(calls) == 3


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_leaves_nothing_behind(tmp_path, listing, number, wrapped):
    def make(counts):
        yield from maker(listing, [])(counts)
        error = OSError(number, os.strerror(number))
        if not wrapped:
            raise error
        raise OSError(number, "Error writing bytes to file. Detail: [errno 28]") from error

    is_full = number != errno.EROFS
    message = "the disk is full" if is_full else "Error writing" if wrapped else "Read-only file system"
    with pytest.raises(
        OSError if is_full else UserError, match=rf"cannot write the cache .*{message}.*cache_dir=DIR"
    ) as caught:
        cached_table(tmp_path / "cache", "set", [listing], {}, make)
    line = machine_fault(caught.value) if is_full else str(caught.value)
    assert line.startswith(f"{tmp_path / 'cache'}: cannot write")
    assert "\n" not in line
    assert list((tmp_path / "cache").iterdir()) == []
    assert cached_table(tmp_path / "cache", "set", [listing], {}, maker(listing, [])).rows.num_rows == 2


def test_leftovers_of_dead_processes_are_cleared(tmp_path, listing):
    cache = tmp_path / "cache"
    old, new, own = cache / ".set-0a1b.part-00aa", cache / ".set-0a1b.part-00bb", cache / ".own"
    for folder in (old, new, own):
        folder.mkdir(parents=True)
        (folder / "rows.arrow").write_bytes(b"half")
    for path in (old / "rows.arrow", old, own / "rows.arrow", own):
        os.utime(path, (0, 0))
    table = cached_table(cache, "set", [listing], {}, maker(listing, []))
    assert set(cache.iterdir()) == {new, own, table.folder}


@pytest.mark.parametrize("size", [0, 1, SAMPLE_BYTES, SAMPLE_BYTES + 1, 2 * SAMPLE_BYTES + 1, 5 * SAMPLE_BYTES])
def test_changes_at_both_ends_of_a_file_of_any_size_are_noticed(tmp_path, size):
    """Also a file whose end was never written: it has its size, and zeros."""

    def folder():
        with cached_folder(tmp_path, "large", [], {}) as (folder, aside):
            if aside is not None:
                (aside / "a.bin").write_bytes(b"x" * size)
        return folder / "a.bin"

    assert folder().stat().st_size == size
    for place in {0, size // 2 if size <= 2 * SAMPLE_BYTES else 0, size - 1} if size else ():
        with open(folder(), "r+b") as file:
            file.seek(place)
            file.write(b"\0")
        assert folder().read_bytes() == b"x" * size
    os.truncate(folder(), size + 1)
    assert folder().stat().st_size == size


def test_a_cache_that_is_a_file_is_named(tmp_path, listing):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="cannot write the cache"):
        cached_table(tmp_path / "cache" / "deeper", "set", [listing], {}, maker(listing, []))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_named(tmp_path, listing):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(UserError, match="cannot write the cache"):
        cached_table(tmp_path / "cache", "set", [listing], {}, maker(listing, []))


def test_errors_of_the_reader_pass_through_and_leave_nothing(tmp_path, listing):
    def make(counts):
        raise UserError("list.txt: line 3 is wrong")
        yield

    with pytest.raises(UserError, match="line 3"):
        cached_table(tmp_path / "cache", "set", [listing], {}, make)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_table_that_another_process_finished_first_is_taken(tmp_path, listing, monkeypatch):
    def make(counts):
        yield from maker(listing, [])(counts)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 0)
            cached_table(tmp_path / "cache", "set", [listing], {}, maker(listing, []))

    table = cached_table(tmp_path / "cache", "set", [listing], {}, make)
    assert table.rows["image_id"][:] == ["a.png", "b.png"]
    assert list((tmp_path / "cache").iterdir()) == [table.folder]


def test_a_file_that_vanishes_is_not_the_cache_s_fault(tmp_path, listing):
    def make(counts):
        yield from maker(tmp_path / "none.txt", [])(counts)

    with pytest.raises(FileNotFoundError):
        cached_table(tmp_path / "cache", "set", [listing], {}, make)


@given(lists=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_ragged_lists_are_the_lists(lists, cut):
    rows = np.repeat(np.arange(len(lists)), [len(x) for x in lists])
    made = ragged(rows, np.array([v for x in lists for v in x], dtype=np.int64), len(lists))
    cut = min(cut, len(lists))
    assert made.slice(0, cut).to_pylist() + made.slice(cut).to_pylist() == lists


@pytest.fixture
def pictures(tmp_path):
    """Twelve listed pictures: 0 is missing, 1 too small, 2 truncated, 3 text, 4 to 7 identical, the rest whole."""
    names = [f"{'even' if i % 2 == 0 else 'odd'}/{i}.png" for i in range(12)]
    rng = np.random.default_rng(0)
    for i, name in enumerate(names[1:], start=1):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.zeros((20, 20, 3)) if 4 <= i < 8 else rng.integers(0, 256, (20, 20, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path, compress_level=0)
    paths = [tmp_path / "images" / name for name in names]
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:600])
    paths[3].write_text("not an image " * 60)

    def make(counts):
        positive = ragged(np.arange(12), np.arange(12), 12)
        yield record_batch([str(p) for p in paths], positive, None, names)

    return cached_table(tmp_path / "cache", "pictures", [], {}, make), tmp_path / "cache", paths


def test_missing_pictures_are_found_and_broken_ones_when_they_are_read(pictures):
    table, cache, paths = pictures
    check = check_images(table, cache)
    assert check.missing.tolist() == [0]
    assert lost_paths(table, check.missing) == [str(paths[0])]
    assert check_images(table, cache, min_bytes=1).missing.tolist() == [0, 1]
    assert check_images(table, cache, min_bytes=650).missing.tolist() == [0, 1, 2]
    assert check_images(table, cache, placeholder_copies=4).missing.tolist() == [0, 4, 5, 6, 7]
    assert check_images(table, cache, placeholder_copies=5).missing.tolist() == [0]
    header = verify_images(table, check, "header")
    assert header.unreadable.tolist() == [1, 3]
    full = verify_images(table, check, workers=2)
    assert full.unreadable.tolist() == [1, 2, 3]
    assert full.lost.tolist() == [0, 1, 2, 3]
    assert full.kept.tolist() == list(range(4, 12))
    assert check_images(table, cache).unreadable.tolist() == [1, 2, 3], "the verification was forgotten"


def test_pictures_are_looked_for_again_when_a_folder_changes(pictures):
    table, cache, paths = pictures
    assert 0 in check_images(table, cache).missing
    Image.new("RGB", (9, 9)).save(paths[0])
    folders = map(str, image_folders(table))
    assert sorted(folders) == sorted({str(path.parent) for path in paths})
    assert 0 not in check_images(table, cache).missing


@pytest.mark.parametrize("size", [0, 1])
def test_what_is_no_file_is_missing(pictures, size):
    table, cache, paths = pictures
    for path in paths[8:]:
        path.unlink()
    os.mkfifo(paths[8])
    paths[9].mkdir()
    paths[10].symlink_to(paths[10])
    paths[11].symlink_to("nothing.png")
    assert check_images(table, cache, min_bytes=size).missing.tolist() == [0, *[1] * size, 8, 9, 10, 11]
