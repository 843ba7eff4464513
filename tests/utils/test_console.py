"""What the commands print: text of users is data."""

import io
import os

import pytest
from rich.console import Console
from rich.table import Table

from ovml.cli.main import main
from ovml.utils import progress
from ovml.utils.console import QUIET, is_quiet, notice, show

TRICKY = ["moon [/]", "[red]", ":smile:", "[link=http://a]b[/link]", "\\[x]"]


def test_strings_print_as_they_are_on_one_line(capsys):
    for text in TRICKY:
        show(text)
        show(f"{text} " + "long " * 100, style="bold")
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == TRICKY
    assert lines[1::2] == [f"{text} " + "long " * 100 for text in TRICKY]


def test_tables_print_strings_as_they_are(capsys):
    table = Table(title="[bold]")
    table.add_column(":smile:")
    for text in TRICKY:
        table.add_row(text)
    show(table)
    out = capsys.readouterr().out
    assert all(text in out for text in (*TRICKY, "[bold]"))


def test_control_characters_and_broken_names_are_escaped(capsys):
    show("\x1b[31mred\r" + os.fsdecode(b"a\xff.png"))
    notice("\x1b[2J")
    printed = capsys.readouterr()
    assert printed.out == "\\x1b[31mred\\x0da\\xff.png\n"
    assert printed.err == "ovml: \\x1b[2J\n"


@pytest.mark.parametrize(("value", "quiet"), [("1", True), ("0", False), ("", False)])
def test_notices_are_quiet_if_asked(monkeypatch, capsys, value, quiet):
    monkeypatch.setenv(QUIET, value)
    notice("hello")
    assert is_quiet() == quiet
    assert (capsys.readouterr().err == "") == quiet


def test_progress_bars_show_file_names_as_they_are(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "shows_progress", lambda: True)
    monkeypatch.setattr(
        progress, "console", lambda stderr: Console(file=screen, force_terminal=True, color_system=None)
    )
    assert list(progress.track(range(3), "reading [/] [red]a")) == [0, 1, 2]
    assert "reading [/] [red]a" in screen.getvalue()


def test_tag_prints_labels_and_paths_as_they_are(picture, tmp_path, tiny, capsys):
    folder = tmp_path / "[red] :smile: [b]"
    folder.mkdir()
    (folder / "broken.png").write_text("no image")
    picture = picture.rename(folder / "a.png")
    (tmp_path / "labels.txt").write_text("\n".join(TRICKY))
    arguments = ["--labels-file", str(tmp_path / "labels.txt"), "--model", tiny, "--top-k", "9"]
    assert main(["tag", str(folder), *arguments, "--format", "table"]) == 0
    first, *ranked, last = capsys.readouterr().out.splitlines()
    assert first == str(picture)
    assert {line.split(maxsplit=1)[1] for line in ranked} == set(TRICKY)
    assert last.startswith(f"{folder / 'broken.png'}: not an image")


def test_a_table_in_a_pipe_is_not_cut(capsys, monkeypatch):
    table = Table("label")
    for number in range(12):
        table.add_column(f"column {number}", no_wrap=True)
    table.add_row("cat", *map(str, range(12)))
    monkeypatch.delenv("COLUMNS", raising=False)
    show(table)
    printed = capsys.readouterr().out
    assert [number for number in range(12) if f"column {number}" in printed] == list(range(12))
    monkeypatch.setenv("COLUMNS", "40")
    show(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 40
