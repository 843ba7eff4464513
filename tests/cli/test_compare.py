"""`ovml compare`: settings that differ, results side by side."""

import copy
import csv
import json
import statistics
import subprocess
import sys

import pytest
import yaml
from commands import SMALL, ovml_here

from ovml.cli.main import main

STAGES = [
    {"class_path": "ovml.training.VisionStage", "init_args": {"epochs": 10, "lr": 0.001}},
    {"class_path": "ovml.training.PromptStage", "init_args": {"epochs": 3}},
]
CONFIG = {
    "seed_everything": 0,
    "trainer": {"max_epochs": None, "default_root_dir": "runs", "limit_test_batches": None},
    "model": {
        "clip": "ovml-demo",
        "head": {"class_path": "ovml.heads.TwoStreamHead", "init_args": {"top_k": 3, "normalize": True}},
        "loss": {"class_path": "ovml.losses.RankingLoss", "init_args": {"temperature": 1.0}},
        "stages": STAGES,
    },
    "data": {"class_path": "ovml.data.DemoDataModule", "init_args": {"clip": "ovml-demo", "eval_size": 60}},
}
ZERO_SHOT = {"zsl/mAP": 0.2, "zsl/P@3": 0.1, "zsl/F1@3": 0.15, "gzsl/mAP": 0.25, "seen/mAP": 0.3}


def results(gain=0.1, **others):
    """Rows of zero-shot CLIP, and of two stages."""
    rows = {"zero-shot": ZERO_SHOT, "vision": {name: value + gain for name, value in ZERO_SHOT.items()}}
    return {**rows, "prompt": {**rows["vision"], "calibration/ECE": 0.0123}, **others}


@pytest.fixture
def make(tmp_path):
    """Writes a run: settings by their place in the configuration, and results of its splits."""

    def write(name, changed=None, validation=None, test=None, config=True):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        content = copy.deepcopy(CONFIG)
        for place, value in (changed or {}).items():
            *outer, last = place.split(".")
            inner = content
            for key in outer:
                inner = inner[key]
            inner[last] = value
        if config:
            (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        (folder / "results.json").write_text(json.dumps(validation or results()))
        if test is not None:
            (folder / "test_results.json").write_text(json.dumps(test))
        return str(folder)

    return write


def compared(capsys, *arguments, code=0):
    """What is printed and said."""
    capsys.readouterr()
    assert main(["compare", *arguments]) == code
    return capsys.readouterr()


def tables(capsys, *arguments):
    """Cells of the printed tables, by title."""
    found, title = {}, ""
    for line in compared(capsys, *arguments, "--format", "table").out.splitlines():
        if line.startswith("│"):
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("│").split("│")])
        elif line and line[0] not in "┏┃┡├└" and not line.strip().startswith(("(", "±")):
            title = line.strip()
    return found


def test_settings_that_differ_are_named_as_they_are_typed(make, capsys):
    stages = [{**STAGES[0], "init_args": {"epochs": 5, "lr": 0.001}}, STAGES[1]]
    changed = {
        "model.loss.init_args.temperature": 0.03,
        "model.stages": stages,
        "trainer.default_root_dir": "elsewhere",
    }
    one, other = make("a"), make("b", changed)
    assert tables(capsys, one, other)["settings that differ"] == [
        ["--model.loss.temperature", "1.0", "0.03"],
        ["model.stages, VisionStage.epochs", "10", "5"],
    ]


def test_of_two_classes_the_names_and_common_arguments_are_compared(make, capsys):
    head = {"class_path": "ovml.heads.LocalHead", "init_args": {"top_k": 5}}
    own = {"class_path": "my_parts.MyLoss", "init_args": {"margin": 2}}
    one, other = make("a"), make("b", {"model.head": head, "model.loss": own, "model.stages": STAGES[1:]})
    assert tables(capsys, one, other)["settings that differ"] == [
        ["--model.head", "TwoStreamHead", "LocalHead"],
        ["--model.head.top_k", "3", "5"],
        ["--model.loss", "RankingLoss", "my_parts.MyLoss"],
        ["--model.stages", "[VisionStage, PromptStage]", "[PromptStage]"],
    ]


def test_metrics_stand_side_by_side_with_differences_to_the_first(make, capsys):
    one, other = make("a"), make("b", {"trainer.max_epochs": 3}, results(gain=0.05))
    found = tables(capsys, one, other)["validation (%)"]
    assert found[:5] == [
        ["ZSL", "zero-shot CLIP", "mAP", "20.0", "20.0 (+0.0)"],
        ["", "", "F1@3", "15.0", "15.0 (+0.0)"],
        ["", "vision stage", "mAP", "30.0", "25.0 (-5.0)"],
        ["", "", "F1@3", "25.0", "20.0 (-5.0)"],
        ["", "prompt stage", "mAP", "30.0", "25.0 (-5.0)"],
    ]
    assert [row[0] for row in found if row[0]] == ["ZSL", "GZSL", "calibrated"]
    chosen = tables(capsys, one, other, "--metrics", "P@3")["validation (%)"]
    assert chosen[1] == ["", "vision stage", "P@3", "20.0", "15.0 (-5.0)"]
    assert {row[2] for row in chosen} == {"P@3"}


def test_seeds_of_one_setting_are_a_mean_and_a_sample_standard_deviation(make, capsys):
    gains = [0.05, 0.07, 0.12]
    seeds = [make(f"s{seed}", {"seed_everything": seed}, results(gain)) for seed, gain in enumerate(gains)]
    other = make("other", {"trainer.max_epochs": 3}, results(0.1))
    lines = compared(capsys, *seeds, other).out.splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t"))
    (group, single) = (row for row in rows if (row["model"], row["labels"], row["metric"]) == ("vision", "zsl", "mAP"))
    assert (group["run"], group["runs"]) == ("s0, s1, s2", "3")
    assert float(group["value"]) == pytest.approx(0.2 + statistics.fmean(gains), abs=1e-6)
    assert float(group["deviation"]) == pytest.approx(statistics.stdev(gains), abs=1e-6)
    assert float(single["difference"]) == pytest.approx(0.1 - statistics.fmean(gains), abs=1e-6)
    assert (group["--seed_everything"], group["--trainer.max_epochs"]) == ("0, 1, 2", "null")
    assert (single["deviation"], single["--trainer.max_epochs"]) == ("", "3")
    table = tables(capsys, *seeds, other)["validation (%)"]
    assert table[2][3:] == ["28.0 ± 3.6", "30.0 (+2.0)"]


def test_runs_that_end_with_other_stages_have_a_row_of_their_last(make, capsys):
    lora = {"zero-shot": ZERO_SHOT, "lora": {name: value + 0.02 for name, value in ZERO_SHOT.items()}}
    changed = {"model.stages": [{"class_path": "ovml.training.LoRAStage"}]}
    one, other = make("a"), make("b", changed, lora)
    found = tables(capsys, one, other, "--metrics", "mAP")["validation (%)"]
    assert found[:5] == [
        ["ZSL", "zero-shot CLIP", "mAP", "20.0", "20.0 (+0.0)"],
        ["", "vision stage", "mAP", "30.0", "-"],
        ["", "prompt stage", "mAP", "30.0", "-"],
        ["", "LoRA", "mAP", "-", "22.0"],
        ["", "last stage", "mAP", "30.0", "22.0 (-8.0)"],
    ]


@pytest.mark.parametrize(
    ("changed", "zero_shot", "reason"),
    [
        ({"data.init_args.eval_size": 40}, 0.3, "--data.eval_size"),
        ({"data.class_path": "ovml.data.OwnDataModule"}, 0.3, "--data"),
        (
            {"model.clip": "other", "data.init_args.clip": "other", "data.init_args.eval_size": 9},
            0.3,
            "--data.eval_size",
        ),
        ({}, 0.3, "zero-shot CLIP scores differently"),  # the files changed, or ovml test was given other options
    ],
    ids=["setting", "class", "another clip", "files"],
)
def test_runs_with_other_images_are_not_comparable(make, capsys, changed, zero_shot, reason):
    rows = results(**{"zero-shot": {**ZERO_SHOT, "zsl/mAP": zero_shot}})
    one, other = make("a"), make("b", {**changed, "trainer.max_epochs": 3}, rows)
    said = compared(capsys, one, other).err
    assert f"b: not comparable with a: other images or labels were evaluated ({reason})\n" in said
    assert tables(capsys, one, other)["validation (%)"][2][3:] == ["30.0", "30.0"]


@pytest.mark.parametrize(
    ("changed", "zero_shot"),
    [
        ({"data.init_args.eval_size": 61}, 0.2),  # zero-shot CLIP tells that the images are the same
        ({"model.clip": "other", "data.init_args.clip": "other"}, 0.4),  # of another model it tells nothing
        ({"data.init_args.batch_size": 8}, 0.2),
    ],
    ids=["same images", "another clip", "training"],
)
def test_runs_with_the_same_images_are_comparable(make, capsys, changed, zero_shot):
    rows = results(**{"zero-shot": {**ZERO_SHOT, "zsl/mAP": zero_shot}})
    one, other = make("a"), make("b", changed, rows)
    assert "not comparable" not in compared(capsys, one, other).err


def test_what_is_missing_is_said_with_the_command_that_gives_it(make, capsys):
    whole = make("a", test=results())
    begun = make("b c", {"seed_everything": 1}, {"zero-shot": ZERO_SHOT, "vision": ZERO_SHOT})
    in_python = make("d", config=False, test=results())
    said = compared(capsys, whole, begun, in_python).err
    assert f"b c: 1 of 2 stages done; go on with: ovml fit --ckpt_path '{begun}'\n" in said
    assert f"b c: no test results; get them with: ovml test --ckpt_path '{begun}'\n" in said
    assert "d: it has no config.yaml, so its settings are not known" in said
    assert "a: " not in said.replace("b c: ", "")


@pytest.mark.parametrize("suffix", [".md", ".csv", ".json"])
def test_a_comparison_is_written_to_a_file(make, capsys, tmp_path, suffix):
    one, other = make("a"), make("b|c", {"model.loss.init_args.temperature": 0.03}, results(0.05))
    out = tmp_path / f"comparison{suffix}"
    assert compared(capsys, one, other, "--out", str(out)).out == ""
    text = out.read_text()
    if suffix == ".md":
        assert "| --model.loss.temperature | 1.0 | 0.03 |\n" in text
        assert "| labels | model | metric | a | b\\|c |\n|---|---|---|---:|---:|\n" in text
        assert "| ZSL | vision stage | mAP | 30.0 | 25.0 (-5.0) |\n" in text
        assert "- a: no test results" in text
    elif suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert {row["--model.loss.temperature"] for row in rows} == {"1.0", "0.03"}
        assert {row["metric"] for row in rows} == {"mAP", "P@3", "F1@3", "ECE"}
    else:
        content = json.loads(text)
        assert [group["settings"] for group in content["groups"]] == [
            {"--model.loss.temperature": "1.0"},
            {"--model.loss.temperature": "0.03"},
        ]
        first = content["results"][0]
        assert (first["run"], first["model"], first["metric"], first["value"]) == ("a", "zero-shot", "mAP", 0.2)
    assert "exists already" in compared(capsys, one, other, "--out", str(out), code=2).err
    assert compared(capsys, one, other, "--out", str(out), "--overwrite").err


def test_files_of_results_are_compared_too(make, capsys):
    run = make("a", test=results())
    other = make("b", {"trainer.max_epochs": 3}, test=results(0.05))
    found = tables(capsys, f"{run}/test_results.json", f"{other}/test_results.json")
    assert "validation (%)" not in found
    assert found["test (%)"][2][2:] == ["mAP", "30.0", "25.0 (-5.0)"]


DAMAGED = {
    "results.json": ["", "[]", '{"vision": 1}', '{"vision": {"zsl/mAP": "high"}}', "\0", "[" * 100_000],
    "test_results.json": ["{"],
    "config.yaml": ["", "a: [", "- 1", "\0", "model: 5"],
}


@pytest.mark.parametrize(("file", "content"), [(name, text) for name, texts in DAMAGED.items() for text in texts])
def test_a_damaged_run_ends_in_one_line(make, capsys, tmp_path, file, content):
    one, other = make("a"), make("b")
    (tmp_path / "runs" / "b" / file).write_text(content)
    said = compared(capsys, one, other, code=2).err
    assert said.startswith(f"ovml: error: {other}/{file}: ")
    assert said.count("\n") == 1


def test_what_is_no_run_ends_in_one_line(make, capsys, tmp_path):
    one = make("a")
    for arguments, message in [
        ([one], f"only one run, {one}: give two or more"),
        ([one, f"{one}/."], f"{one}/.: given twice"),
        ([one, str(tmp_path / "runs")], f"not a run; it holds runs: give {one}"),
        ([one, str(tmp_path / "nowhere")], "nowhere: not a run; give the folder of a run"),
        ([one, make("b"), "--metrics", "mAP,AUC"], "--metrics: no 'AUC'; there are ECE, mAP, P@3, F1@3"),
        ([one, make("c"), "--out", "a.txt"], "let the name end in .md, .csv, .json"),
    ]:
        assert message in compared(capsys, *arguments, code=2).err


def test_names_tell_runs_of_several_folders_apart(make, capsys):
    one, other = make("demo/version_0"), make("few/version_0", {"trainer.max_epochs": 3})
    lines = compared(capsys, one, other).out.splitlines()
    assert {line.split("\t")[0] for line in lines[1:]} == {"demo/version_0", "few/version_0"}


def test_neither_torch_nor_lightning_is_imported(make):
    code = "import sys; from ovml.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, "compare", make("a"), make("b"), "--format", "table"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()[-1].split()
    assert not {"torch", "lightning", "transformers", "jsonargparse", "numpy"} & set(loaded)


def test_runs_of_ovml_fit_are_compared(config, tmp_path, capsys):
    options = ["--model.stages", "[PromptStage]", "--trainer.max_epochs", "1", "--trainer.default_root_dir"]
    for seed in ("0", "1"):
        arguments = ["--config", config, *SMALL, *options, str(tmp_path), "--seed_everything", seed]
        assert ovml_here("fit", *arguments) == 0
    runs = [str(tmp_path / f"version_{number}") for number in (0, 1)]
    found = tables(capsys, *runs)
    assert found["settings that differ"] == [["--seed_everything", "0, 1"]]
    own = [json.loads((tmp_path / f"version_{number}" / "results.json").read_text()) for number in (0, 1)]
    numbers = [100 * rows["prompt"]["zsl/mAP"] for rows in own]
    mean, deviation = statistics.fmean(numbers), statistics.stdev(numbers)
    assert ["", "prompt stage", "mAP", f"{mean:.1f} ± {deviation:.1f}"] in found["validation (%)"]


@pytest.mark.parametrize("arguments", [{}, {"init_args": {}}, {"init_args": {"temperature": 2.0}}])
@pytest.mark.parametrize("part", ["head", "loss"])
def test_classes_without_arguments_are_settings_too(part, arguments, make, capsys):
    names = [f"own.{part.title()}{i}" for i in range(3)]
    runs = [make(name, {f"model.{part}": {"class_path": name, **arguments}}) for name in names]
    out = compared(capsys, *runs, "--format", "table").out
    assert all(name in out for name in names)
    assert "± sample standard deviation" not in out


@pytest.mark.parametrize(("value", "comparable"), [(0.2, True), (float("nan"), True), (0.3, False)])
def test_runs_whose_augmentation_differs_are_compared(value, comparable, make, capsys):
    zero_shot = {"zsl/mAP": value}
    first = make("a", None, {"zero-shot": {"zsl/mAP": 0.2 if value == 0.3 else value}, "vision": {"zsl/mAP": 0.4}})
    changed = {"data.init_args": {"clip": "ovml-demo", "eval_size": 60, "flip": 0.0, "cutout": 0.5}}
    second = make("b", changed, {"zero-shot": zero_shot, "vision": {"zsl/mAP": 0.5}})
    assert ("not comparable" in compared(capsys, first, second).err) != comparable
