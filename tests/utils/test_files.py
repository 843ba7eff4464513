"""Files and folders that appear when they are complete."""

import itertools
import os

import pytest

from ovml.utils import files
from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write, check_folder, restore_replaced, write_text


def fill(folder):
    folder.mkdir()
    (folder / "new.txt").write_text("new")


@pytest.fixture
def target(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "old.txt").write_text("old")
    return tmp_path / "saved"


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_replaces_another_only_where_it_is_asked_to(target):
    with pytest.raises(OSError, match="not empty"), atomic_write(target) as beside:
        fill(beside)
    assert names(target.parent) == ["saved", "saved/old.txt"]
    with atomic_write(target, replace_folder=True) as beside:
        fill(beside)
        assert (target / "old.txt").is_file()
    assert names(target.parent) == ["saved", "saved/new.txt"]
    with atomic_write(target.parent / "deep" / "first", replace_folder=True) as beside:
        fill(beside)
    assert names(target.parent / "deep") == ["first", "first/new.txt"]


@pytest.mark.parametrize("at_the_rename", [False, True])
def test_a_folder_stays_as_it_was_after_an_error(target, monkeypatch, at_the_rename):
    def stop(*_):
        raise KeyboardInterrupt

    if at_the_rename:
        monkeypatch.setattr(os, "replace", stop)
        monkeypatch.setattr(files, "_exchange", stop)
    with pytest.raises(KeyboardInterrupt), atomic_write(target, replace_folder=True) as beside:
        (fill if at_the_rename else stop)(beside)
    assert names(target.parent) == ["saved", "saved/old.txt"]


def replace_and_die(target, moment, hard):
    """Replace the folder in a process of its own that ends before the given call that renames."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 3
    try:
        calls = iter(range(100))

        def ending(call):
            def run(*arguments):
                if next(calls) == moment:
                    if hard:
                        os._exit(9)
                    raise KeyboardInterrupt
                return call(*arguments)

            return run

        os.replace, os.rename, os.fsync = ending(os.replace), ending(os.rename), ending(os.fsync)
        files._exchange = ending(files._exchange)
        with atomic_write(target, replace_folder=True) as beside:
            fill(beside)
        code = 0
    except KeyboardInterrupt:
        code = 9
    finally:
        os._exit(code)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new(tmp_path, monkeypatch, hard, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for moment in itertools.count():
        target = tmp_path / str(moment) / "saved"
        target.mkdir(parents=True)
        (target / "old.txt").write_text("old")
        code = replace_and_die(target, moment, hard)
        restore_replaced(target)
        assert names(target) in (["old.txt"], ["new.txt"])
        with atomic_write(target, replace_folder=True) as beside:
            fill(beside)
        assert names(target.parent) == ["saved", "saved/new.txt"]
        if code == 0:
            break
        assert code == 9
    assert moment >= 4


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    target = tmp_path / "names.txt"
    with atomic_write(target) as mine:
        mine.write_text("mine")
        with atomic_write(target) as other:
            other.write_text("other")
        assert mine.read_text() == "mine"
        assert target.read_text() == "other"
    assert target.read_text() == "mine"
    assert names(tmp_path) == ["names.txt"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(os, "replace", lambda one, other: (done.append("replace"), replace(one, other)))
    with atomic_write(tmp_path / "saved", replace_folder=True) as beside:
        fill(beside)
    assert done == [str(beside), str(beside / "new.txt"), "replace", str(tmp_path)]


@pytest.mark.parametrize("below", ["", "deep/runs"])
def test_a_folder_that_is_or_stands_in_a_file_is_refused(tmp_path, below):
    check_folder(tmp_path / "new" / below, "default_root_dir")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^default_root_dir .*file is not a folder; give another$"):
        check_folder(tmp_path / "file" / below, "default_root_dir")
    with pytest.raises(UserError, match="default_root_dir x+: cannot be used"):
        check_folder("x" * 5000, "default_root_dir")


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_names_of_any_length_that_the_system_takes_are_written(tmp_path, name):
    write_text(tmp_path / name, "content")
    assert [path.name for path in tmp_path.iterdir()] == [name]
