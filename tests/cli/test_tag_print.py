"""What `ovml tag` prints, and where it cannot be printed."""

import io
import json
import os
import subprocess
import sys

import pytest
from commands import python_path

from ovml.cli.main import main
from ovml.utils.console import QUIET

NAMES = ["plain.png", "tab\t.png", "two\nlines.png", "return\r.png", "esc\x1b[31m.png", "back\\slash.png", "漢字 é.png"]
NAMES += [os.fsdecode(b"byte\xff.png"), "[red] :smile:.png"]
LABELS = ["cat", "two\nwords", "漢字", "tab\there", "a\\b", "\x1b[2J", "[bold]"]
UNESCAPED = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r", "\\x1b": "\x1b"}


@pytest.fixture
def odd(picture, tmp_path, tiny):
    """A folder of images with odd names, and the command that tags them with odd labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(picture.read_bytes())
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    command = ["tag", str(folder), "--labels-file", str(tmp_path / "labels.json"), "--model", tiny, "--top-k", "99"]
    return folder, command


def read_back(cell):
    """What stands for a cell of the tab-separated form."""
    text, at = "", 0
    while at < len(cell):
        escape = next((e for e in UNESCAPED if cell.startswith(e, at)), None)
        text += UNESCAPED[escape] if escape else cell[at]
        at += len(escape or " ")
    return text


def test_a_pipe_gets_a_line_for_each_image_and_label(odd, capsys):
    folder, command = odd
    assert main(command) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    rows = [line.split("\t") for line in lines]
    assert [len(row) for row in rows] == [3] * len(NAMES) * len(LABELS)
    shown = {
        str(folder / name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in NAMES
    }
    assert {read_back(image) for image, _, _ in rows} == shown
    assert {read_back(label) for _, label, _ in rows} == set(LABELS)
    for image in {image for image, _, _ in rows}:
        scores = [float(score) for name, _, score in rows if name == image]
        assert scores == sorted(scores, reverse=True)
    assert not any(ord(character) < 32 for line in lines for character in line.replace("\t", ""))


def test_a_table_has_a_line_for_each_image_and_each_label(odd, capsys):
    folder, command = odd
    assert main([*command, "--format", "table"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(NAMES) * (1 + len(LABELS))
    assert f"{folder}/tab\\t.png\n" in out
    assert f"{folder}/[red] :smile:.png\n" in out
    assert "  two\\nwords\n" in out


def test_json_lines_are_the_rows_of_the_file(odd, tmp_path, capsys):
    folder, command = odd
    (folder / "broken.png").write_text("no image")
    assert main([*command, "--format", "jsonl"]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert main([*command, "--out", str(tmp_path / "tags.jsonl")]) == 0
    rows = list(map(json.loads, lines))
    assert rows == [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [row["image"] for row in rows if row["error"]] == [str(folder / "broken.png")]
    assert {label["label"] for label in rows[-1]["labels"]} == set(LABELS)


def test_unreadable_images_are_on_the_error_stream_of_tab_separated_lines(odd, monkeypatch, capsys):
    monkeypatch.setenv(QUIET, "1")
    folder, command = odd
    (folder / "bro\nken.png").write_text("no image")
    assert main([*command, "--format", "tsv"]) == 0
    done = capsys.readouterr()
    assert "ken.png" not in done.out
    assert done.err.startswith(f"ovml: {folder}/bro\\nken.png: not an image that Pillow can read")
    assert len(done.err.splitlines()) == 1


def test_the_form_is_of_what_is_printed(odd, tmp_path, capsys):
    _, command = odd
    assert main([*command, "--format", "tsv", "--out", str(tmp_path / "tags.csv")]) == 2
    assert "--format: is of what is printed" in capsys.readouterr().err
    assert main([*command, "--format", "xml"]) == 2
    assert "--format: invalid choice: 'xml'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_the_output_lacks_are_escaped(odd, form, encoding, monkeypatch):
    folder, command = odd
    (folder / "broken 漢字.png").write_text("no image")
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding))
    assert main([*command, "--format", form]) == 0
    out = output.getvalue().decode(encoding)
    assert "\\u6f22\\u5b57" in out
    if form == "jsonl":
        rows = list(map(json.loads, out.splitlines()))
        assert {label["label"] for label in rows[-1]["labels"]} == set(LABELS)


FULL = "ovml: error: standard output: No space left on device; make room, or choose another place"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("form", ["table", "tsv", "jsonl"])
def test_a_full_output_is_one_line(odd, form, monkeypatch, capsys):
    monkeypatch.setenv(QUIET, "1")
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115 - closed below
    assert main([*odd[1], "--format", form]) == 1
    assert capsys.readouterr().err == f"{FULL}\n"
    sys.stdout.close()  # as the interpreter does at its end


@pytest.mark.parametrize("form", ["table", "tsv", "jsonl"])
def test_a_closed_pipe_ends_quietly(odd, form, monkeypatch, capsys):
    monkeypatch.setenv(QUIET, "1")
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    assert main([*odd[1], "--format", form]) == 0
    assert capsys.readouterr().err == ""
    sys.stdout.close()


def in_a_process(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    environment["PYTHONUNBUFFERED"] = ""
    command = [sys.executable, "-m", "ovml", "--quiet", *arguments]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("output", ["pipe", "closed pipe", "/dev/full"])
def test_the_process_itself_ends_as_its_output_lets_it(odd, output):
    arguments = odd[1] if output == "pipe" else ["--help"]
    reader, writer = os.pipe()
    if output != "pipe":
        os.close(reader)
    if output == "/dev/full":
        writer = os.open(output, os.O_WRONLY)
    done = in_a_process(*arguments, stdout=writer)
    os.close(writer)
    code, err = (1, f"{FULL}\n") if output == "/dev/full" else (0, "")
    assert (done.returncode, done.stderr.decode()) == (code, err)
    if output == "pipe":
        with open(reader, encoding="ascii") as written:
            assert "\\u6f22\\u5b57" in written.read()


def test_bytes_that_are_no_text_are_no_label(picture, capsys):
    assert main(["tag", str(picture), "--labels", os.fsdecode(b"cat,d\xffg")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "ovml: error: --labels: name 2 is not Unicode text; write it in UTF-8"


def test_what_an_images_file_holds_is_said(picture, tiny, tmp_path, capsys):
    (tmp_path / "list.csv").write_text(f"id,path\n1,{picture}\n")
    command = ["tag", "--images-file", str(tmp_path / "list.csv"), "--labels", "cat", "--model", tiny]
    command += ["--device", "cpu", "--precision", "float32"]
    assert main(command) == 0
    done = capsys.readouterr()
    assert done.out.split("\t")[:2] == [str(picture), "cat"]
    assert done.err == f"ovml: 1 path from list.csv, column 'path': {picture}\n"
