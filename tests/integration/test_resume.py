"""Resuming a run: with its own settings, by one process, and without running what a stranger's folder names."""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMALL
from stopper import ControlC, ended_by

from ovml.cli.main import main
from ovml.cli.run_config import MAY_DIFFER
from ovml.training.run_folder import RunFolder

STAGE = "{{class_path: {}, init_args: {{epochs: {}, warmup_epochs: 0}}}}"


def stages(vision=1):
    return f"[{STAGE.format('VisionStage', vision)}, {STAGE.format('PromptStage', 1)}]"


@pytest.fixture(scope="module")
def started(config, tmp_path_factory):
    """The arguments of a finished run, and its folder."""
    root = tmp_path_factory.mktemp("runs")
    start = ["fit", "--config", config, *SMALL, "--model.stages", stages(), "--trainer.default_root_dir", str(root)]
    assert main(start) == 0
    return start, root / "version_0"


def refused(capsys, *arguments):
    """The one line of a command that ends with 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ovml: error: ")]
    return line.removeprefix("ovml: error: ")


def said(capsys, *arguments):
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().err


def contents(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_stays_as_it_is(started, capsys):
    start, run = started
    before = contents(run)
    finished = (
        "ovml: stage 'vision' is finished; its results are kept\n"
        "ovml: stage 'prompt' is finished; its results are kept\n"
        f"ovml: {run}: this run is finished; nothing was trained\n"
    )
    for arguments in (
        ["fit", "--ckpt_path", str(run)],
        ["fit", "--ckpt_path", str(run / "prompt" / "last.ckpt")],
        ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(run)],
        [*start, "--ckpt_path", "last"],
    ):
        assert finished in said(capsys, *arguments)
    assert contents(run) == before


SETTINGS = {
    "--model.distillation_weight": ("3", "3.0 was given, the run has 1.0"),
    "--seed_everything": ("9", "9 was given, the run has 5"),
    "--trainer.max_epochs": ("9", "9 was given, the run has its default"),
    "--trainer.precision": ("bf16-mixed", "bf16-mixed was given, the run has its default"),
    "--trainer.accumulate_grad_batches": ("2", "2 was given, the run has 1"),
    "--data.train_size": ("16", "16 was given, the run has 24"),
    "--data.batch_size": ("4", "4 was given, the run has 8"),
    "--model.head": ("LocalHead", "LocalHead was given, the run has its default"),
    "--model.stages": ("[PromptStage]", "[PromptStage] was given, the run has [VisionStage, PromptStage]"),
    "--trainer.callbacks": ("LearnedEMA", "[LearnedEMA] was given, the run has none"),
}


@pytest.mark.parametrize("option", SETTINGS)
def test_a_setting_that_differs_is_named_with_both_values(started, capsys, option):
    start, run = started
    value, message = SETTINGS[option]
    for arguments in (["fit", "--ckpt_path", str(run)], [*start, "--ckpt_path", "last"]):
        line = refused(capsys, *arguments, option, value)
        assert line.startswith(f"{option}: {message}; resume it by 'ovml fit --ckpt_path {run}' alone")


def test_epochs_of_a_stage_are_compared_too(started, capsys):
    start, run = started
    line = refused(capsys, *start, "--model.stages", stages(vision=2), "--ckpt_path", str(run))
    assert line.startswith("model.stages.0.epochs: 2 was given, the run has 1")


def test_other_data_is_refused(started, capsys):
    _, run = started
    line = refused(
        capsys, "fit", "--config", "demo.yaml", "--ckpt_path", str(run), "--data", "HubDataModule", "--data.path", "x"
    )
    assert line.startswith("--data: HubDataModule was given, the run has DemoDataModule; ")


def test_settings_of_the_machine_may_differ(started, tmp_path, capsys):
    _, run = started
    other = {
        "data.eval_batch_size": "5",
        "data.num_workers": "0",
        "data.cache_dir": str(tmp_path),
        "model.gradient_checkpointing": "true",
        "trainer.default_root_dir": str(tmp_path),
        "trainer.devices": "1",
        "trainer.enable_progress_bar": "true",
        "trainer.log_every_n_steps": "1",
        "trainer.logger": "false",
        "trainer.profiler": "simple",
        "trainer.callbacks": "DeviceStatsMonitor",
    }
    assert other.keys() - {"trainer.callbacks"} <= MAY_DIFFER
    page = (Path(__file__).parents[2] / "docs" / "faq.md").read_text()
    assert [name for name in MAY_DIFFER if f"`{name}`" not in page] == []
    options = [word for name, value in other.items() for word in (f"--{name}", value)]
    assert "this run is finished" in said(capsys, "fit", "--ckpt_path", str(run), *options)


def test_a_checkpoint_of_an_earlier_stage_is_not_taken_for_the_run(started, capsys):
    _, run = started
    line = refused(capsys, "fit", "--ckpt_path", str(run / "vision" / "last.ckpt"))
    assert "last.ckpt: not the newest checkpoint; to resume the run give its folder" in line


def test_a_stage_that_was_cut_between_checkpoint_and_result_keeps_its_average(started, tmp_path, capsys):
    start, _ = started
    arguments = [*start, "--trainer.default_root_dir", str(tmp_path), "--trainer.callbacks+", "LearnedEMA"]
    assert main([*arguments, "--trainer.callbacks.decay", "0.5"]) == 0
    run = tmp_path / "version_0"
    whole = json.loads((run / "results.json").read_text())
    prompt = torch.load(run / "prompt" / "last.ckpt", weights_only=True)["state_dict"]
    for cut in ("prompt", "vision"):  # a killed vision stage has no prompt stage yet
        (run / "results.json").write_text(
            json.dumps(
                {"zero-shot": whole["zero-shot"]}
                if cut == "vision"
                else {name: whole[name] for name in ("zero-shot", "vision")}
            )
        )
        if cut == "vision":
            shutil.rmtree(run / "prompt")
        assert main(["fit", "--ckpt_path", str(run)]) == 0
        assert json.loads((run / "results.json").read_text()) == whole
    again = torch.load(run / "prompt" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(prompt[name], again[name]) for name in prompt)


def test_an_interrupt_before_the_first_epoch_promises_nothing(config, tmp_path, capsys):
    arguments = ["fit", "--config", config, *SMALL, "--trainer.default_root_dir", str(tmp_path)]
    assert main([*arguments, *ended_by(ControlC, "vision", 0)]) == 130
    assert "ovml: interrupted; no epoch was finished, so there is nothing to resume\n" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="another process trains the run")
def test_a_run_that_another_process_trains_is_not_resumed(started, capsys):
    _, run = started
    read, write = os.pipe()
    if not (other := os.fork()):
        with RunFolder(run).held():
            os.write(write, b"held")
            signal.pause()
    try:
        os.read(read, 4)
        line = refused(capsys, "fit", "--ckpt_path", str(run))
        assert line == (
            f"{run}: another process trains this run; wait for it, or leave ckpt_path out to start another run"
        )
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert "this run is finished" in said(capsys, "fit", "--ckpt_path", str(run))


# ------------------------------------------------------------------ folders of strangers

RUNS = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "{marker}"]}}
DATA = "ovml.data.DemoDataModule"
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
HOSTILE = {
    "head": ("model.head", RUNS, "subprocess.Popen"),
    "tokenizer of any type": ("model.tokenizer", RUNS, None),
    "clip": ("model.clip", RUNS, "subprocess.Popen"),
    "module of torch": (
        "model.clip",
        {"class_path": "torch.distributed.nn.RemoteModule", "init_args": {"remote_device": "cpu", "module_cls": RUNS}},
        "torch.distributed.nn.RemoteModule",
    ),
    "callback": ("trainer.callbacks", [RUNS], "subprocess.Popen"),
    "logger": ("trainer.logger", RUNS, "subprocess.Popen"),
    "function": (
        "trainer.callbacks",
        [{"class_path": LAMBDA, "init_args": {"setup": "os.abort"}}],
        "os.abort",
    ),
    "function through a package": (
        "trainer.callbacks",
        [{"class_path": LAMBDA, "init_args": {"setup": "lightning.pytorch.cli.os.abort"}}],
        "lightning.pytorch.cli.os.abort",
    ),
    "function of a module here": (
        "trainer.callbacks",
        [{"class_path": LAMBDA, "init_args": {"setup": "side_effect.touch"}}],
        "side_effect.touch",
    ),
    "function of ovml": ("model.clip", {"class_path": "ovml.saving.load.load_model"}, "ovml.saving.load.load_model"),
    "method of ovml": ("data", {"class_path": f"{DATA}.load_from_checkpoint"}, f"{DATA}.load_from_checkpoint"),
    "module that is imported": ("model.head", "side_effect.NoHead", "side_effect.NoHead"),
    "class that is no part": ("model.head", {"class_path": "side_effect.Anything"}, "side_effect.Anything"),
    "data": ("data", RUNS, "subprocess.Popen"),
}
SIDE_EFFECT = "def touch(*_):\n    open({marker!r}, 'w')\n\ntouch()\n"


@pytest.mark.parametrize("case", HOSTILE)
def test_a_strangers_configuration_runs_nothing(started, tmp_path, capsys, monkeypatch, case):
    start, run = started
    stranger, marker = tmp_path / "stranger", tmp_path / "marker"
    (tmp_path / "side_effect.py").write_text(SIDE_EFFECT.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(run, stranger)
    place, value, named = HOSTILE[case]
    content = yaml.safe_load((stranger / "config.yaml").read_text())
    outer, _, key = place.rpartition(".")
    (content[outer] if outer else content)[key] = json.loads(json.dumps(value).replace("{marker}", str(marker)))
    (stranger / "config.yaml").write_text(yaml.safe_dump(content))
    for command in (["test"], ["fit"], start):
        line = refused(capsys, *command, "--ckpt_path", str(stranger))
        if named is not None and command is not start:
            assert line.startswith(f"{stranger / 'config.yaml'}: names {named}, which is not a part")
            assert line.endswith(f"if you trust this run, give its configuration too: --config {stranger}/config.yaml")
    assert not marker.exists()


def pickled():
    """A checkpoint that runs code, for whom reads it carelessly."""
    content = io.BytesIO()
    torch.save({"state_dict": {}, "epoch": OSError}, content)
    return content.getvalue()


@pytest.mark.parametrize("damage", [lambda _: b"", lambda whole: whole[: len(whole) // 2], lambda _: pickled()])
def test_a_damaged_checkpoint_of_a_stage_that_is_not_finished_is_one_line(started, tmp_path, capsys, damage):
    _, run = started
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text('{"zero-shot": {}, "vision": {}}')
    file = tmp_path / "run" / "prompt" / "last.ckpt"
    file.write_bytes(damage(file.read_bytes()))
    lines = refused(capsys, "fit", "--ckpt_path", str(tmp_path / "run"))
    assert f"{file}: not a checkpoint that ovml can read safely" in lines


@pytest.mark.parametrize("path", ["/no/run", "x" * 5000, "/dev/null/run/last.ckpt"])
def test_a_path_that_is_no_run_is_one_line(capsys, path):
    line = refused(capsys, "fit", "--ckpt_path", path)
    assert line.startswith(f"--ckpt_path {path[:500]}")
    assert "not a run; give 'last'" in line


@pytest.mark.parametrize("root", ["/dev/null", "/dev/null/runs"])
def test_a_root_that_is_no_folder_is_one_line(config, capsys, root):
    line = refused(capsys, "fit", "--config", config, *SMALL, "--trainer.default_root_dir", root)
    assert line == f"--trainer.default_root_dir {root}: /dev/null is not a folder; give another"


@pytest.mark.parametrize("content", [b"\xff\xc7\0", b"[]", b"model: &m {head: *m}\n"])
def test_a_damaged_configuration_is_one_line(started, tmp_path, capsys, content):
    _, run = started
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    assert refused(capsys, "test", "--ckpt_path", str(tmp_path / "run"))


def test_functions_are_not_taken_from_any_configuration(config, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(
        yaml.safe_dump({"trainer": {"callbacks": [{"class_path": LAMBDA, "init_args": {"setup": "os.abort"}}]}})
    )
    line = refused(capsys, "fit", "--config", config, "--config", str(tmp_path / "my.yaml"), *SMALL)
    assert "Importing 'os.abort' is not allowed" in line


def test_a_class_of_the_users_own_needs_no_permission(config, tmp_path, capsys):
    arguments = ["--model.head", "my_parts.MaxPatchHead", "--trainer.callbacks+", "stopper.ControlC"]
    arguments += ["--trainer.callbacks.stage", "none", "--trainer.callbacks.epoch", "0", "--trainer.max_epochs", "1"]
    arguments += ["--model.stages", "[PromptStage]", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", config, *SMALL, *arguments]) == 0
    assert "this run is finished" in said(capsys, "fit", "--ckpt_path", str(tmp_path / "version_0"))
