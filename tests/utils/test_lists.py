"""Lists of names in files: every form gives the same names, and what is no list is one line."""

import json
import os
import unicodedata

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ovml import LabelVocabulary, UserError
from ovml.utils import lists
from ovml.utils.lists import LABELS, PATHS, read_list, read_paths
from ovml.vocabulary import read_names, read_vocabulary

NAMES = ["fish", "moon, full", 'a "red" star', "Roß", "[red]", "id:7"]
IDS = ["/m/1", "/m/2", "/m/3", "/m/4", "/m/5", "/m/6"]
PAIRS = list(zip(IDS, NAMES, strict=True))


def cell(text):
    return '"' + text.replace('"', '""') + '"'


def table(rows, separator, header=None):
    lines = [separator.join(header)] if header else []
    return "\n".join([*lines, *(separator.join(map(cell, row)) for row in rows)]) + "\n"


FORMS = {
    "names.txt": "\n".join(NAMES),
    "crlf.txt": "\r\n".join(["", *NAMES, ""]),
    "blank.txt": "\n\n".join(f"  {name} " for name in NAMES),
    "names": "\n".join(NAMES),
    "one.csv": table([[name] for name in NAMES], ","),
    "name.csv": table([[name] for name in NAMES], ",", ["name"]),
    "class_name.csv": table([[name] for name in NAMES], ",", ["Class_Name"]),
    "label.tsv": table([[name] for name in NAMES], "\t", ["label"]),
    "names.json": json.dumps(NAMES),
    "names.yaml": yaml.safe_dump(NAMES),
    "names.YML": yaml.safe_dump([{"name": name} for name in NAMES], allow_unicode=True),
}
WITH_IDS = {
    "id.csv": table(PAIRS, ","),
    "id_name.csv": table(PAIRS, ",", ["id", "name"]),
    "name_id.csv": table(((n, i) for i, n in PAIRS), ",", ["name", "id"]),
    "openimages.csv": table(PAIRS, ",", ["LabelName", "DisplayName"]),
    "semicolon.csv": table(PAIRS, ";", ["id", "name"]),
    "tab.csv": table(PAIRS, "\t", ["id", "name"]),
    "tab.tsv": table(PAIRS, "\t"),
    "more.csv": table(((i, n, str(k)) for k, (i, n) in enumerate(PAIRS)), ",", ["mid", "display_name", "count"]),
    "map.json": json.dumps(dict(PAIRS)),
    "records.json": json.dumps([{"id": i, "name": n} for i, n in PAIRS]),
    "map.yaml": yaml.safe_dump(dict(PAIRS)),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("form", [*FORMS, *WITH_IDS])
def test_every_form_gives_the_names(tmp_path, form, encoding):
    content = {**FORMS, **WITH_IDS}[form]
    start = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / form).write_bytes((start + content).encode(encoding))
    found = read_list(tmp_path / form)
    assert found.names == NAMES
    assert found.ids == (IDS if form in WITH_IDS else None)
    assert read_vocabulary(tmp_path / form) == LabelVocabulary(tuple(NAMES))
    assert read_names(tmp_path / form) == tuple(NAMES)


def test_what_was_understood_is_said_in_one_line(tmp_path):
    (tmp_path / "names.csv").write_text("id;class name\n1;fish\n2;moon\n3;star\n4;sun\n")
    assert read_list(tmp_path / "names.csv").summary() == (
        "4 labels from names.csv, column 'class name': fish, moon, star, ..."
    )
    (tmp_path / "long.txt").write_text("red " * 10_000 + "\nfish")
    assert read_list(tmp_path / "long.txt").summary() == f"2 labels from long.txt: {'red ' * 25}..., fish"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"fish", "cannot tell how to read a list from .xlsx"),
        ("a.png", b"fish", "cannot tell how to read a list from .png"),
        ("a.txt", b"fish\0moon", "NUL"),
        ("a.csv", b"fi\0sh\n", "NUL"),
        ("a.txt", b"\xff\xfffish", "not UTF-8 text"),
        ("a.csv", b'fish\n"moon\nstar\nsun\n', "line 4: unexpected end of data; check the quotes"),
        ("a.csv", b'"fish\nmoon"\nstar\n', "a name goes over several lines"),
        ("a.csv", b"id,name\n1,fish\n2\n", "line 3: expected an id and a name"),
        ("a.csv", b"name\n" + b"x" * 200_000 + b"\n", "field larger than field limit"),
        ("a.json", b'["fish", 7]', "label 2 is 7; labels are strings"),
        ("a.json", b'["fish"', "not JSON"),
        ("a.json", b'"fish"', "expected a list of labels, got a str"),
        ("a.json", b'[{"id": "1", "name": "fish"}, {"name": "moon"}]', "each label needs an id of its own"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.yaml", b"- fish\n- [", "not YAML"),
        ("a.yaml", b"!!python/object/apply:os.system [echo]", "not YAML"),
        ("a.txt", b"", "the list is empty"),
        ("a.json", b"[]", "the list is empty"),
        ("a.csv", b"id,name\n", "the list is empty"),
        ("a.json", b'{"m1": "cat", "m1": "dog"}', '"m1" stands twice in one object'),
        ("a.txt", "caf\u00e9\ncafe\u0301\n".encode(), "is repeated"),
        ("a.txt", "fish\nfi\u200bsh\n".encode(), "differ only in case or blanks"),
        ("a.txt", b"x" * 50_000 + b"\n" + b"x" * 50_000, r"'x{100}\.\.\.' \(name 2\) is repeated"),
        ("a.txt", b"x" * 50_000 + b"\n" + b"X" * 50_000, r"'X{100}\.\.\.' \(name 2\) and 'x{100}\.\.\.' differ only"),
    ],
)
def test_what_is_no_list_of_labels_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as info:
        read_vocabulary(tmp_path / name)
    assert name in str(info.value)
    assert "\n" not in str(info.value)


def test_lines_end_where_a_line_ends(tmp_path):
    (tmp_path / "a.txt").write_text("a\u2028b\nc\x0cd\ne\x85f\n")
    assert read_list(tmp_path / "a.txt").names == ["a\u2028b", "c\x0cd", "e\x85f"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing"])
def test_what_is_no_file_is_one_line(tmp_path, kind):
    path = {"device": "/dev/zero"}.get(kind, tmp_path / "names.txt")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match="not a file|cannot read the label file"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"a b.png\n\nc,d.png\r\ne\xff.png"),
        ("a", b"\xef\xbb\xbfa b.png\r\nc,d.png\r\ne\xff.png\r\n"),
        ("a.lst", "a b.png\nc,d.png\n".encode("utf-16")),
        ("a.csv", b"name;id\na b.png;3\nc,d.png;4\n"),
        ("a.json", b'["a b.png", "c,d.png"]'),
        ("a.yaml", b"- a b.png\n- c,d.png\n"),
    ],
)
def test_paths_in_a_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    expected = ["a b.png", "c,d.png", os.fsdecode(b"e\xff.png")][: 2 + (b"\xff.png" in content)]
    assert list(read_paths(str(tmp_path / name))) == expected


@pytest.mark.parametrize("named", [False, True])
def test_a_list_of_paths_may_be_a_pipe_and_is_read_as_needed(tmp_path, named):
    if named:
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(tmp_path / "pipe", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
    os.write(writer, b"a.png\nb.png\n")
    paths = read_paths(str(tmp_path / "pipe") if named else f"/dev/fd/{reader}")
    assert next(paths) == "a.png"
    os.close(writer)
    assert list(paths) == ["b.png"]
    os.close(reader)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.txt: cannot be read"),
        (b"a.png\0b.png\0", "a.txt: has a NUL character"),
        (b"\xff\xfea", "damaged UTF-16"),
        (b"a" * 100_000, "a.txt: a line is longer than any path"),
        (b"a.png\n" + b"a" * 100_000 + b"\n", "a.txt: a line is longer than any path"),
    ],
)
def test_what_is_no_list_of_paths_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_paths(str(tmp_path / "a.txt")))


def test_an_endless_file_is_no_list_of_paths():
    with pytest.raises(UserError, match="/dev/zero: has a NUL character"):
        list(read_paths("/dev/zero"))


DECOMPOSED = "cafe\u0301 \u00e9 .png "
FORMS_OF_PATHS = {
    "header.csv": lambda names: table([[name] for name in names], ",", ["path"]),
    "spaced.csv": lambda names: table([[name] for name in names], ",", ["File Name"]),
    "more.csv": lambda names: table(
        [[str(i), name, "cat"] for i, name in enumerate(names)], ",", ["n", "image", "tag"]
    ),
    "plain.csv": lambda names: table([[name] for name in names], ","),
    "file.tsv": lambda names: table([[name, "x"] for name in names], "\t", ["file", "caption"]),
    "list.json": json.dumps,
    "records.json": lambda names: json.dumps([{"file_name": name, "id": 3} for name in names]),
    "list.yaml": yaml.safe_dump,
    "records.yml": lambda names: yaml.safe_dump([{"filename": name} for name in names]),
}


@pytest.mark.parametrize("form", FORMS_OF_PATHS)
def test_paths_in_tables_and_documents_stay_as_they_are(tmp_path, form):
    names = [
        "a, b.png",
        DECOMPOSED,
        unicodedata.normalize("NFC", DECOMPOSED),
        " a.png",
        "two\nlines.png",
        "a.png",
        "a.png",
    ]
    (tmp_path / form).write_text(FORMS_OF_PATHS[form](names), encoding="utf-8", newline="")
    said = []
    assert list(read_paths(str(tmp_path / form), said.append)) == names
    assert said == [f"7 paths from {read_list(tmp_path / form, PATHS).source}: {', '.join(names[:3])}, ..."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a.png,cat\nb.png,dog\n", "line 1: expected one path alone in every line, or a header"),
        ("a.csv", "path,label\na.png\n,cat\n", "line 3: expected one path"),
        ("a.json", '{"a.png": 1}', "expected a list of paths, got a dict"),
        ("a.json", '[{"url": "a.png"}]', "path 1 is None; paths are strings"),
        ("a.yaml", "- 7", "path 1 is 7; paths are strings"),
    ],
)
def test_what_is_no_table_or_document_of_paths_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_paths(str(tmp_path / name))


def test_a_table_of_paths_may_be_larger_than_a_list_of_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "LABELS", lists.LABELS._replace(most_bytes=99))
    monkeypatch.setattr(lists, "PATHS", lists.PATHS._replace(most_bytes=9_999))
    (tmp_path / "a.csv").write_text("path\n" + "photos/a.png\n" * 100)
    assert len(list(read_paths(str(tmp_path / "a.csv")))) == 100
    with pytest.raises(UserError, match="too large for a label file"):
        read_list(tmp_path / "a.csv", lists.LABELS)
    assert PATHS.most_bytes >= 10 * LABELS.most_bytes


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), max_size=8)


@given(LINES, st.sampled_from([".txt", ".csv", ".tsv", ".json", ".yaml"]))
def test_anything_is_a_vocabulary_or_one_line(tmp_path_factory, lines, suffix):
    path = tmp_path_factory.mktemp("lists") / f"a{suffix}"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        vocabulary = read_vocabulary(path)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        assert len(vocabulary) > 0
        assert all(name == name.strip() and name for name in vocabulary.names)
    assert "\n" not in message


def test_blanks_and_bytes_that_are_no_text_are_part_of_a_path(tmp_path):
    names = [b" a.png", b"b.png ", b"\tc.png", b"d\xff\xe9.png", "漢字.png".encode(), b"e f.png"]
    (tmp_path / "paths.txt").write_bytes(b"\n".join(names) + b"\n")
    assert list(map(os.fsencode, read_paths(str(tmp_path / "paths.txt")))) == names
