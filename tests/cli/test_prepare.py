"""`ovml prepare`: what is wrong ends in one line, and what it finds is said."""

import csv
import errno
import os

import pytest
from data import fake_json, fake_nuswide
from data.fake_json import GZSL, SEEN, TRAIN, UNSEEN, write_json

from ovml.cli.main import main
from ovml.utils import files


@pytest.fixture
def root(tmp_path):
    """A small tree of JSON files, to be changed."""
    fake_json.write_tree(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def prepare(root, capsys):
    """Runs `ovml prepare json` on the tree; returns the exit code, standard output and the lines of errors."""

    def run(*arguments):
        given = {"root": root, "cache_dir": root / "cache"}
        given |= {f"{role}_file": f"{role}.json" for role in ("train", "zsl", "gzsl")}
        code = main(["prepare", "json", *(f"--{name}={value}" for name, value in given.items()), *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err.strip().splitlines()

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-missing", "-1"], "max_missing must be from 0 to 1; got -1"),
        (["--max-missing", "1.5"], "max_missing must be from 0 to 1; got 1.5"),
        (["--workers", "0"], "--workers: expected positive int or null; got '0'"),
        (["--workers", "-3"], "--workers: expected positive int or null; got '-3'"),
        (["--out", "{file}"], "file.txt is not a folder; give another"),
    ],
)
def test_options_out_of_range_leave_nothing_behind(arguments, message, prepare, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    code, out, err = prepare(*(argument.format(file=tmp_path / "file.txt") for argument in arguments))
    assert code == 2
    assert len(err) == 1
    assert message in err[0]
    assert out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", "set"}
    assert not (tmp_path / "set" / "cache").exists()


def test_an_output_folder_that_cannot_be_written_is_the_machine_s_fault(prepare, tmp_path, monkeypatch):
    replace = os.replace

    def read_only(source, target):
        if "lists" in str(target):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", read_only)
    code, _, err = prepare("--out", tmp_path / "lists")
    assert code == 1
    assert len(err) == 1
    assert "labels.csv: Read-only file system" in err[0]
    assert not list((tmp_path / "lists").iterdir())


def test_images_in_training_and_test_are_counted(prepare, root):
    _, out, _ = prepare()
    assert "both" not in out
    write_json(root / "gzsl.json", [*SEEN, *UNSEEN], [*GZSL, TRAIN[0], TRAIN[2]])
    code, out, _ = prepare()
    assert code == 0
    assert "2 images are in both train and test" in out


def test_a_path_with_a_line_break_is_named_on_one_line(prepare, root):
    write_json(root / "train.json", SEEN, [*TRAIN, ["a\nb.png", []]])
    code, out, err = prepare()
    assert code == 2
    assert out == ""
    assert len(err) == 1
    assert r"train.json: image path 'a\nb.png' has a line break" in err[0]


def test_paths_that_leave_the_root_need_an_option_which_the_error_names(prepare, root):
    (root / "train/0.png").rename(root.parent / "outside.png")
    write_json(root / "train.json", SEEN, [*TRAIN[1:], ["../outside.png", ["cat"]]])
    code, _, err = prepare()
    assert code == 2
    assert len(err) == 1
    assert f"{root}/train.json: image path '../outside.png' leaves the folder {root}" in err[0]
    assert err[0].endswith("allow such paths (--allow-outside true)")
    code, out, _ = prepare("--allow-outside", "true")
    assert code == 0
    assert "lost" not in out


def test_no_label_is_a_formula_of_a_spreadsheet(prepare, root, tmp_path):
    names = ["=1+1", "+x", "-y", "@z", "plain, with a comma"]
    write_json(root / "train.json", [*SEEN, *names], TRAIN)
    write_json(root / "gzsl.json", [*SEEN, *names, *UNSEEN], GZSL)
    code, _, _ = prepare("--out", tmp_path / "lists")
    assert code == 0
    rows = list(csv.reader((tmp_path / "lists" / "labels.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]][: len(SEEN) + 5] == [*SEEN, "'=1+1", "'+x", "'-y", "'@z", names[4]]


@pytest.mark.parametrize("target", ["folder", "nothing"])
def test_folders_and_broken_links_among_the_images_of_nuswide_are_no_images(target, tmp_path, capsys):
    truth = fake_nuswide.make_truth()
    root = tmp_path / "set"
    fake_nuswide.write_official(root, truth)
    fake_nuswide.write_pictures(root, truth)
    first = root / "Flickr" / truth.images["train"][0]
    (tmp_path / "folder" / "more").mkdir(parents=True)
    for number in range(6):
        (first.parent / f"rc{number}.d").symlink_to(tmp_path / target)
    first.unlink()
    first.symlink_to(tmp_path / target)
    arguments = ["prepare", "nuswide", "--root", str(root), "--cache_dir", str(tmp_path / "cache")]
    assert main([*arguments, "--max-missing", "0.5"]) == 0
    assert f"missing or unreadable in train: {tmp_path}" in capsys.readouterr().out
    assert main(arguments) == 2
    assert f"1 of the 7 images of the train split (14.3%) are missing or unreadable, the first of them {first}" in (
        capsys.readouterr().err
    )
