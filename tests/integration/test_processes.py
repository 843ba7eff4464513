"""Two gloo processes give what one process gives: the command line, run as a person runs it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import ovml, ovml_here, python_path
from lightning.pytorch.callbacks import Callback
from torch import distributed

from ovml.cli.main import main
from ovml.data import DemoDataModule

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)

TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
ONE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"]


def succeed(processes, *command):
    """Several processes are started by one of their own; one alone is this one."""
    if processes is ONE:
        assert ovml_here(*command, *processes) == 0
    else:
        done = ovml(*command, *processes)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run that two processes trained together."""
    root = tmp_path_factory.mktemp("runs")
    small = ["--data.train_size", "16", "--data.batch_size", "4", "--trainer.max_epochs", "1"]
    command = ["fit", "--config", config, *small, "--data.eval_size", "13", "--trainer.default_root_dir", str(root)]
    succeed(TWO, *command)
    assert [path.name for path in root.iterdir()] == ["version_0"], "the processes did not share one run folder"
    return root / "version_0"


def results(run, processes, *arguments):
    succeed(processes, "test", "--ckpt_path", str(run), *arguments)
    return json.loads((run / "test_results.json").read_text())


@pytest.mark.parametrize(("size", "batch"), [(13, 4), (1, 4)])
def test_every_picture_counts_once_whatever_the_processes_and_batches(run, size, batch):
    """13 pictures do not divide by 2: a padding sampler would count one twice; of 1 one process has none."""
    alone = results(run, ONE, "--data.eval_size", str(size), "--data.eval_batch_size", "5")
    together = results(run, TWO, "--data.eval_size", str(size), "--data.eval_batch_size", str(batch))
    assert set(alone) == set(together) == {"zero-shot", "vision", "prompt"}
    for row, metrics in alone.items():
        assert together[row] == pytest.approx(metrics, abs=1e-6, nan_ok=True)


def test_predictions_of_two_processes_stand_in_the_order_of_the_pictures(run):
    texts = []
    for processes in (ONE, TWO):
        succeed(processes, "predict", "--ckpt_path", str(run))
        texts.append((run / "predictions.jsonl").read_text())
    one, two = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert [line["image_id"] for line in two] == [f"test-{i:06d}" for i in range(13)]
    for ours, theirs in zip(two, one, strict=True):
        assert [tag["score"] for tag in ours["labels"]] == pytest.approx(
            [t["score"] for t in theirs["labels"]], abs=1e-5
        )
    assert not list(run.glob("*.part*"))


@pytest.mark.parametrize("strategy", ["lightning.pytorch.strategies.ModelParallelStrategy", "fsdp"])
def test_a_strategy_that_cannot_serve_is_one_clear_error(config, tmp_path, capsys, strategy):
    """Checkpoints in shards, which are this strategy's default; and FSDP without a GPU."""
    arguments = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", strategy]
    message = "trainer: The strategy `fsdp` requires a GPU"
    if strategy != "fsdp":
        arguments += ["--trainer.strategy.data_parallel_size", "1", "--trainer.strategy.tensor_parallel_size", "1"]
        message = "ovml keeps a checkpoint in one file; add --trainer.strategy.save_distributed_checkpoint false"
    arguments += ["--trainer.default_root_dir", str(tmp_path), "--data.eval_size", "2"]
    assert main(["fit", "--config", config, *arguments]) == 2
    assert not distributed.is_initialized()
    assert not list(tmp_path.iterdir())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ovml: error")]
    assert message in line


# ---------------------------------------------------------------------- training


class Uneven(DemoDataModule):
    """16 pictures, of which processes that share batches of 4 may train on 2 and 1, then on 0 and 1."""

    def dataset(self, split):
        rows = super().dataset(split)
        if split != "train":
            return rows
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed)).tolist()
        labelled = {order[position] for position in (0, 2, 1, 9)}  # even positions are the first process's
        first_unseen = len(self.vocabulary.seen)

        def leave_out(row, index):
            seen = row["positive"] if index in labelled else []
            return {"positive": [*seen, *(label for label in row["positive"] if label >= first_unseen)]}

        return rows.map(leave_out, with_indices=True)


class Gradients(Callback):
    """Writes the gradients of every optimizer step."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        whole = {n: getattr(p.grad, "full_tensor", lambda g=p.grad: g)() for n, p in pl_module.named_parameters()
                 if p.grad is not None}  # fmt: skip
        if trainer.is_global_zero:
            torch.save(whole, self.folder / f"{pl_module.stage.name}-{trainer.global_step}.pt")


@pytest.fixture(scope="module")
def uneven(config, tmp_path_factory):
    """Trains an epoch of each stage on 16 pictures, 8 to a step; returns gradients, weights and metrics."""

    def train(batch_size, run, stages="[ovml.training.VisionStage, ovml.training.PromptStage]"):
        root = tmp_path_factory.mktemp("uneven")
        arguments = ["--config", config, "--data", "test_processes.Uneven", "--data.train_size", "16"]
        arguments += ["--data.eval_size", "7", "--data.batch_size", str(batch_size)]
        arguments += ["--model.stages", stages, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(root)]
        arguments += ["--trainer.callbacks+", "test_processes.Gradients", "--trainer.callbacks.folder", str(root)]
        run(*arguments)
        assert [path.name for path in root.glob("version*")] == ["version_0"]
        newest = max(root.glob("version_0/*/last.ckpt"), key=lambda file: file.stat().st_mtime)
        weights = torch.load(newest, weights_only=True)["state_dict"]
        gradients = {file.stem: torch.load(file, weights_only=True) for file in sorted(root.glob("*.pt"))}
        return gradients, weights, json.loads((root / "version_0" / "results.json").read_text())

    return train


@pytest.fixture(scope="module")
def alone(uneven):
    """One process, batches of 8."""
    return uneven(8, partial(succeed, ONE, "fit"))


def assert_same_training(ours, theirs, gradient=1e-6, weight=1e-5, metric=1e-6, stages=("vision", "prompt")):
    """Two steps a stage. Gradients, summed in another order, to 1e-6 and 1e-5 of their size.

    Weights to 1e-5, a hundredth of the rate: AdamW divides a gradient by its own size, and so makes as much of its last
    digits as of itself where it is near 0; of a key's bias, whose gradient is 0 in exact arithmetic, of nothing else.
    """
    (gradients, weights, metrics), (their_gradients, their_weights, their_metrics) = ours, theirs
    assert gradients.keys() == their_gradients.keys() == {f"{stage}-{step}" for stage in stages for step in (0, 1)}
    for step in gradients:
        assert gradients[step].keys() == their_gradients[step].keys()
        for name, value in gradients[step].items():
            torch.testing.assert_close(value, their_gradients[step][name], atol=gradient, rtol=10 * gradient)
    assert weights.keys() == their_weights.keys()
    for name in weights:
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(weights[name], their_weights[name], atol=weight, rtol=0)
    for row in their_metrics:
        assert metrics[row] == pytest.approx(their_metrics[row], abs=metric, nan_ok=True)


@pytest.fixture(scope="module")
def together(uneven):
    """Two processes, batches of 4 each."""
    return uneven(4, partial(succeed, TWO, "fit"))


def test_two_processes_train_as_one_with_twice_the_batch(alone, together):
    """Although they keep unequal numbers of pictures, once none: each counts as much as it has."""
    assert_same_training(together, alone)


@pytest.mark.parametrize(
    ("name", "stage"), [("ladder", "ovml.training.LadderStage"), ("lora", "ovml.training.LoRAStage")]
)
def test_what_is_added_to_a_tower_trains_the_same(uneven, name, stage):
    if name == "lora":
        pytest.importorskip("peft")
    stages = json.dumps([{"class_path": stage, "init_args": {"warmup_epochs": 0}}])
    alone, together = (
        uneven(size, partial(succeed, processes, "fit"), stages) for size, processes in ((8, ONE), (4, TWO))
    )
    assert_same_training(together, alone, stages=(name,))


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="this torch's FSDP2 does not run on a CPU")
def test_parameters_in_shards_train_as_whole_ones(alone, uneven):
    strategy = ["--trainer.strategy", "lightning.pytorch.strategies.ModelParallelStrategy"]
    for option, value in {
        "data_parallel_size": 2,
        "tensor_parallel_size": 1,
        "save_distributed_checkpoint": "false",
    }.items():
        strategy += [f"--trainer.strategy.{option}", str(value)]
    arguments = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", *strategy]
    assert_same_training(uneven(4, partial(succeed, arguments, "fit")), alone)


def launch(script, environment, *arguments):
    """Run one of the examples' scripts as a person does, with what stands beside this Python first in the path."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([*environment.pop("PATH", []), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", str(tests.parent / "examples" / script), *arguments, "--trainer.accelerator", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_torchrun_launches_the_same(together, uneven):
    environment = {"PROCESSES": "2", "PORT": str(free_port())}
    ours = uneven(4, partial(launch, "launch_torchrun.sh", environment))
    assert_same_training(ours, together, 0, 0, 0)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_slurm_launches_the_same_on_two_machines(together, uneven, tmp_path):
    """What stands for `srun` starts a process for each of two machines, as SLURM would."""
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/usr/bin/env bash\nset -e\n"
        'SLURM_PROCID=0 SLURM_NODEID=0 "$@" & first=$!\nSLURM_PROCID=1 SLURM_NODEID=1 "$@"\nwait $first\n'
    )
    srun.chmod(0o755)
    port = free_port()
    slurm = {"JOB_ID": os.getpid(), "JOB_NAME": "ovml", "NNODES": 2, "NTASKS": 2, "NTASKS_PER_NODE": 1, "LOCALID": 0}
    environment = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    environment |= {"PATH": [str(tmp_path)], "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}

    def run(*arguments):
        root = arguments[arguments.index("--trainer.default_root_dir") + 1]
        launch("launch_slurm.sbatch", {**environment, "ROOT": root}, *arguments)

    assert_same_training(uneven(4, run), together, 0, 0, 0)
