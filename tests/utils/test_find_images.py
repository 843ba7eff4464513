import glob
import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from ovml.utils.errors import UserError
from ovml.utils.find_images import EXTENSIONS, find_images
from ovml.utils.images import load_image


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of empty files, and the working directory in it."""
    for path in [
        "b/c/z.JPG",
        "b/a.png",
        "b/notes.txt",
        "b/.hidden.png",
        "b/c/.cache/x.png",
        "b/c/y.png",
        "b/c-d/k.gif",
        "b/e/f/a.png",
        "top.png",
        "[1].png",
    ]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*paths):
    return [str(path) for path in find_images(paths)]


def test_folders_are_searched_in_order(tree, picture):
    files = [p for p in (tree / "b").rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()]
    everything = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(tree).parts))
    assert len(everything) == 5
    assert list(find_images([picture, tree / "b"])) == [picture, *everything]
    assert found("b/c", "top.png", "b/notes.txt", "b/.hidden.png") == [
        "b/c/y.png",
        "b/c/z.JPG",
        "top.png",
        "b/notes.txt",
        "b/.hidden.png",
    ]
    skipped = Counter()
    list(find_images([tree / "b"], skipped))
    assert skipped == {"hidden": 2, ".txt": 1}


def test_a_link_to_itself_is_one_entry_that_cannot_be_read(tree):
    (tree / "b" / "loop.png").symlink_to("loop.png")
    assert found("b") == ["b/a.png", "b/c/y.png", "b/c/z.JPG", "b/c-d/k.gif", "b/e/f/a.png", "b/loop.png"]
    with pytest.raises(UserError, match=r"loop.png: cannot be read \(Too many levels of symbolic links\)"):
        load_image(tree / "b" / "loop.png")


@pytest.fixture
def odd(tmp_path):
    """A pipe, a socket, a device and a name that is too long."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))
        yield {
            "pipe": tmp_path / "pipe.png",
            "socket": tmp_path / "socket.png",
            "device": Path("/dev/zero"),
            "long": tmp_path / ("x" * 300 + ".png"),
            "long path": tmp_path / "/".join(["x" * 200] * 30),
        }


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "long", "long path"])
def test_what_is_no_file_is_one_line_and_does_not_hang(odd, kind):
    reason = r"cannot be read \(File name too long\)" if kind.startswith("long") else "not a file; give an image"
    with pytest.raises(UserError, match=reason) as info:
        load_image(odd[kind])
    assert str(info.value).startswith(f"{odd[kind]}: ")
    assert len(str(info.value).splitlines()) == 1
    assert list(find_images([odd[kind]])) == [odd[kind]]


def test_what_is_no_file_in_a_folder_is_passed_over_and_counted(tree, odd):
    skipped = Counter()
    (tree / "b" / "round").symlink_to(tree / "b")
    for name in ("pipe", "socket"):
        odd[name].rename(tree / "b" / f"{name}.png")
    assert len(list(find_images(["b"], skipped))) == 5
    assert skipped == {"hidden": 2, ".txt": 1, "no file": 3}


def test_what_is_not_there_is_named_before_anything_is_given_out(tree):
    (tree / "empty" / "inside").mkdir(parents=True)
    (tree / "empty" / "notes.txt").write_text("")
    (tree / "link").symlink_to(tree / "nowhere.png")
    for path, message in [
        ("empty", "empty: no images in this folder; looked for .apng"),
        ("none", "none: no such file or folder"),
        ("link", "link: no such file or folder"),
        ("b/*.gif", r"b/\*.gif: no file fits this pattern"),
        ("none/*.png", r"none/\*.png: no file fits this pattern"),
    ]:
        with pytest.raises(UserError, match=message):
            find_images(["top.png", path])


PATTERNS = ["*.png", "b/*", "b/*.png", "*/*.png", "b/**/*.png", "**/a.png", "**/?.*", "**/*", "b/**/**/[ay].png"]
PATTERNS += ["**/.*", "**/.cache/*", "*/c/*.JPG", "b/[!a]*", "./b/*.png", "[[]1].png"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("absolute", [False, True])
def test_patterns_find_what_glob_finds(tree, pattern, absolute):
    pattern = f"{tree}/{pattern}" if absolute else pattern
    paths = [Path(p) for p in glob.glob(pattern, recursive=True)]
    folders = [path for path in paths if path.is_dir()]
    inside = [(p, p.relative_to(folder)) for folder in folders for p in folder.rglob("*")]
    shown = [p for p, rest in inside if p.suffix.lower() in EXTENSIONS and not any(x[0] == "." for x in rest.parts)]
    expected = {p for p in (*paths, *shown) if p.is_file()}
    if not expected:
        with pytest.raises(UserError, match="no file fits this pattern"):
            find_images([pattern])
        return
    assert list(find_images([pattern])) == sorted(expected)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    assert found("[1].png") == ["[1].png"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tree):
    (tree / "b" / "link.png").symlink_to(tree / "top.png")
    (tree / "b" / "round").symlink_to(tree / "b")
    (tree / "b" / "gone.png").symlink_to(tree / "nowhere.png")
    assert "b/link.png" in found("b")
    assert len(found("b")) == 6


def test_a_folder_is_listed_when_it_is_needed(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i:02d}").mkdir()
        (tmp_path / f"{i:02d}" / "x.png").write_bytes(b"")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    images = find_images([tmp_path])
    assert next(images) == tmp_path / "00" / "x.png"
    assert len(listed) == 2
    assert len(list(images)) == 19
    assert len(listed) == 21


def test_a_folder_that_cannot_be_listed_is_given_out_itself(tree, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "c":
            raise PermissionError
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found("b") == ["b/a.png", "b/c", "b/c-d/k.gif", "b/e/f/a.png"]
    assert "b/c" in found("**/*.png")


def test_urls_are_given_out_where_they_are_allowed(tree):
    urls = ["http://localhost/a*.png", "HTTPS://localhost/b"]
    assert list(find_images(["top.png", *urls, "b/c"], allow_urls=True)) == [
        Path("top.png"),
        *urls,
        Path("b/c/y.png"),
        Path("b/c/z.JPG"),
    ]
    with pytest.raises(UserError, match=r"http://localhost/a\*.png: a URL is downloaded only with allow_urls"):
        find_images(["top.png", *urls])
