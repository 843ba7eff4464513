"""Two gloo processes give what one process gives: the command line, run as a person runs it."""

import json

import pytest
from commands import ovml
from torch import distributed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)

TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
ONE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run that two processes trained together."""
    root = tmp_path_factory.mktemp("runs")
    small = ["--data.train_size", "16", "--data.batch_size", "4", "--trainer.max_epochs", "1"]
    command = ["fit", "--config", config, *small, "--data.eval_size", "13", "--trainer.default_root_dir", str(root)]
    done = ovml(*command, *TWO)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in root.iterdir()] == ["version_0"], "the processes did not share one run folder"
    return root / "version_0"


def results(run, *arguments):
    done = ovml("test", "--ckpt_path", str(run), *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads((run / "test_results.json").read_text())


@pytest.mark.parametrize(("size", "batch"), [(13, 4), (1, 4)])
def test_every_picture_counts_once_whatever_the_processes_and_batches(run, size, batch):
    """13 pictures do not divide by 2: a padding sampler would count one twice; of 1 one process has none."""
    alone = results(run, *ONE, "--data.eval_size", str(size), "--data.eval_batch_size", "5")
    together = results(run, *TWO, "--data.eval_size", str(size), "--data.eval_batch_size", str(batch))
    assert set(alone) == set(together) == {"zero-shot", "vision", "prompt"}
    for row, metrics in alone.items():
        assert together[row] == pytest.approx(metrics, abs=1e-6, nan_ok=True)


def test_predictions_of_two_processes_stand_in_the_order_of_the_pictures(run):
    texts = []
    for processes in (ONE, TWO):
        done = ovml("predict", "--ckpt_path", str(run), *processes)
        assert done.returncode == 0, done.stderr
        texts.append((run / "predictions.jsonl").read_text())
    one, two = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert [line["image_id"] for line in two] == [f"test-{i:06d}" for i in range(13)]
    for ours, theirs in zip(two, one, strict=True):
        assert [tag["score"] for tag in ours["labels"]] == pytest.approx(
            [t["score"] for t in theirs["labels"]], abs=1e-5
        )
    assert not list(run.glob("*.part*"))
