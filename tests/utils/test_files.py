"""Files and folders that appear when they are complete."""

import os

import pytest

from ovml.utils.files import atomic_write


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
    with pytest.raises(KeyboardInterrupt), atomic_write(target, replace_folder=True) as beside:
        (fill if at_the_rename else stop)(beside)
    assert names(target.parent) == ["saved", "saved/old.txt"]
