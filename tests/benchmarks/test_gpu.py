"""The benchmark of one GPU: at toy size on the CPU all of it runs, and a section that fails leaves the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch
from gpu_sections.base import FULL, TOY, Bench, Case, LeftOutError, label_names
from gpu_sections.measure import cells, header
from gpu_sections.parts import dense_ranking_loss

from ovml.losses import ranking_loss

SCRIPT = Path(gpu.__file__)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """What a run at toy size leaves, and what it prints."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(SCRIPT), "--toy", "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "results.json").read_text()), (out / "results.md").read_text(), done.stdout


def test_every_section_ends_without_an_error(toy):
    results, _, _ = toy
    assert sorted(results["sections"]) == list("ABCDEFGHI")
    assert {section["ended"] for section in results["sections"].values()} == {"whole"}
    rows = [row for section in results["sections"].values() for row in section["rows"]]
    assert [row for row in rows if "error" in row] == []
    left_out = {row["case"].split(",")[-1].strip() for row in rows if "left out" in row}
    assert left_out == {
        "compiled",
        "DDP of one process",
        "pytest tests/encoders/test_precision.py -k '16-mixed or compiled'",
    }


def test_every_row_has_what_is_expected_and_what_is_measured(toy):
    results, page, printed = toy
    assert printed.strip().endswith(page.strip())
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    rows = [row for row in tables if row[0] not in ("case", "---")]
    assert len(rows) == sum(len(section["rows"]) for section in results["sections"].values())
    assert all(len(row) == len(header()) and row[1] and row[2] for row in rows)


def test_the_sections_measure_what_they_are_named_after(toy):
    rows = {row["case"]: row for section in toy[0]["sections"].values() for row in section["rows"]}
    product = rows["product of 64^3, bf16"]
    assert product["TFLOP/s"] == pytest.approx(2 * 64**3 / 1e9 / product["ms"])
    step, fused = rows["stage 1, 4 images, bf16-mixed"], rows["stage 1, 4 images, bf16-mixed, fused AdamW"]
    assert fused["operators"] <= step["operators"]
    few, many = rows["40 labels, 8 a batch, bf16-mixed"], rows["40 labels, 64 a batch, bf16-mixed"]
    assert many["operators"] < few["operators"]
    assert rows["gradient of 4 x 40 twice"]["the same bits"] == "yes"
    assert "flash_attention" in rows["vision tower, bf16-mixed"]["kernels of that name"]
    assert rows["train loader, 1 workers"]["images/s"] > 0
    assert rows["tagging, bf16, batches of 4, 1 threads"]["images/s"] > 0
    assert rows["trainer, 4 images in memory, bf16-mixed, DDP of one"]["ms"] > 0


# ---------------------------------------------------------------------- sections that fail


def whole(bench):
    yield Case("fine", "1", lambda: lambda: {"s": 2.0})
    yield Case("without a package", "1", left_out)
    yield Case("wrong", "1", lambda: 1 / 0)
    yield Case("fine too", "1", lambda: lambda: {"s": 3.0})


def left_out():
    raise LeftOutError("nothing is installed")


def crash(bench):
    yield from [Case("before", "1", lambda: lambda: {"s": 2.0}), Case("crash", "1", lambda: lambda: os._exit(7))]


def hang(bench):
    yield Case("before", "1", lambda: lambda: {"s": 2.0})
    yield Case("hang", "1", lambda: lambda: os.read(os.pipe()[0], 1))


def again(bench):
    yield Case("again", "1", lambda: lambda: {"s": 5.0})


def broken(bench):
    raise ValueError("no cases")


SECTIONS = {
    "A": ("crashing", 60, crash),
    "B": ("hanging", 2, hang),
    "C": ("broken", 60, broken),
    "D": ("fine", 60, whole),
}


def test_a_section_that_fails_leaves_the_others_and_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ALLOWANCE", 1.0)
    monkeypatch.setattr(gpu, "START", 0.0)
    results = gpu.run("ABCD", TOY, "cpu", tmp_path, 60, SECTIONS)
    ended = {name: section["ended"] for name, section in results["sections"].items()}
    assert ended == {
        "A": "the process ended with 7",
        "B": "cut off after 2 s",
        "C": "ValueError: no cases",
        "D": "whole",
    }
    rows = {name: [cells(row)[2] for row in section["rows"]] for name, section in results["sections"].items()}
    assert (rows["A"], rows["B"], rows["C"]) == (["2 s"], ["2 s"], [])
    error = "error: ZeroDivisionError: division by zero"
    assert rows["D"] == ["2 s", "left out: nothing is installed", error, "3 s"]
    page = (tmp_path / "results.md").read_text()
    assert all(text in page for text in (*list(ended.values())[:3], error))
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_a_second_run_measures_only_what_did_not_end(tmp_path):
    first = gpu.run("AD", TOY, "cpu", tmp_path, 60, SECTIONS)
    other = dict.fromkeys("AD", ("other", 60, again))
    second = gpu.run("AD", TOY, "cpu", tmp_path, 60, other)
    assert [row["case"] for row in second["sections"]["A"]["rows"]] == ["again"]
    assert second["sections"]["D"] == first["sections"]["D"]
    at_other_sizes = gpu.run("D", FULL, "cpu", tmp_path, 60, other)
    assert [row["case"] for row in at_other_sizes["sections"]["D"]["rows"]] == ["again"]


def test_sections_beyond_the_limit_are_not_run(tmp_path):
    results = gpu.run("D", TOY, "cpu", tmp_path, 0, SECTIONS)
    assert results["sections"]["D"]["ended"] == "not run: the 0 s of --limit were over"


def test_a_section_that_does_not_exist_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--toy", "--only", "A,X"])
    with pytest.raises(SystemExit, match="--only: there is no section X; they are A, B, C, D, E, F, G, H, I"):
        gpu.main()


# ---------------------------------------------------------------------- what is measured against


def test_the_dense_comparison_is_the_ranking_loss():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(4, 40, generator=generator), Bench(TOY, torch.device("cpu")).targets(4, 40)
    targets[1, 3], targets[2, 5] = 1, -1
    torch.testing.assert_close(dense_ranking_loss(logits, targets), ranking_loss(logits, targets))


@pytest.mark.parametrize("count", [7, 925, 10_000])
def test_names_are_different_and_of_one_to_five_words(count):
    names = label_names(count)
    assert len(set(names)) == len(names) == count
    assert {len(name.split()) for name in names} <= {1, 2, 3, 4, 5}
