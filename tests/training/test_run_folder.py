"""The folder of a run."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from ovml import UserError
from ovml.training.run_folder import RunFolder


def test_runs_that_start_together_have_a_folder_each(tmp_path):
    (tmp_path / "version_2").mkdir()
    (tmp_path / "version_x").mkdir()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.new(tmp_path).path.name, range(24)))
    assert sorted(made) == sorted(f"version_{number}" for number in range(3, 27))


def test_the_last_run_is_that_of_the_highest_number(tmp_path):
    for number in (1, 10, 9):
        (tmp_path / f"version_{number}").mkdir()
    assert RunFolder.find("last", tmp_path).path == tmp_path / "version_10"


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run to resume in"):
        RunFolder.find("last", tmp_path)
    with pytest.raises(UserError, match="not a run; give 'last', a run's folder"):
        RunFolder.find(tmp_path / "version_0", tmp_path)


def test_results_are_kept_by_row(tmp_path):
    run = RunFolder.new(tmp_path / "runs")
    assert run.results == {}
    run.add_result("zero-shot", {"zsl/mAP": 0.5})
    run.add_result("vision", {"zsl/mAP": 0.75})
    assert RunFolder(run.path).results == {"zero-shot": {"zsl/mAP": 0.5}, "vision": {"zsl/mAP": 0.75}}
    assert [path.name for path in run.path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"vision": 1}', "\0", '{"vision": {"zsl/mAP": 0.'])
def test_damaged_results_are_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json: damaged .*; delete it"):
        RunFolder(tmp_path).results  # noqa: B018 - reading it is the test


def test_a_run_without_a_configuration_is_one_by_its_results(tmp_path):
    run = RunFolder.new(tmp_path)
    run.add_result("zero-shot", {})
    assert RunFolder.find(run.path, tmp_path) == run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="another process trains the run")
def test_a_run_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    run = RunFolder.new(tmp_path)
    read, write = os.pipe()
    if not (other := os.fork()):
        with run.held():
            os.write(write, b"held")
            signal.pause()
    try:
        assert os.read(read, 4) == b"held"
        with pytest.raises(UserError, match="version_0: another process trains this run; wait for it"), run.held():
            pass
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    with run.held():
        pass
    with run.held():
        assert run.results == {}


def test_a_file_system_without_locks_holds_nothing_up(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with RunFolder.new(tmp_path).held():
        pass
