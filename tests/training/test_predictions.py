"""The file of predictions."""

import json
from types import SimpleNamespace

import pytest
import torch

from ovml.training.callbacks.run import PredictionWriter

LABELS = ("cat", "dog", "fish")


def trainer_of(rank, world_size):
    strategy = SimpleNamespace(barrier=lambda: None)
    return SimpleNamespace(global_rank=rank, world_size=world_size, is_global_zero=rank == 0, strategy=strategy)


def write(path, rank, world_size, batches):
    """What one process does, with the numbers of the rows in its batches."""
    writer, trainer = PredictionWriter(path, LABELS, top_k=2), trainer_of(rank, world_size)
    writer.on_predict_start(trainer, None)
    for rows in batches:
        scores = torch.tensor([[0.1, 0.2, float(row)] for row in rows]).reshape(-1, 3)
        outputs = {"image_id": [f"image {row}" for row in rows], "scores": scores}
        writer.on_predict_batch_end(trainer, None, outputs, {"row": rows}, 0)
    writer.on_predict_end(trainer, None)


@pytest.mark.parametrize(
    "broken", [(), (0,), (1,), (2, 3), (0, 2, 4, 6), (1, 3, 5), (10, 11)], ids=lambda rows: f"broken {rows}"
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_lines_are_in_the_order_of_the_rows_whichever_are_left_out(tmp_path, world_size, broken):
    path = tmp_path / "predictions.jsonl"
    for rank in reversed(range(world_size)):  # the first process joins the files
        own = range(rank, 12, world_size)
        batches = [[row for row in own[i : i + 2] if row not in broken] for i in range(0, len(own), 2)]
        write(path, rank, world_size, batches)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [row for row in range(12) if row not in broken]
    assert [line["image_id"] for line in lines] == [f"image {row}" for row in kept]
    assert lines[-1]["labels"][0] == {"label": "fish", "score": float(kept[-1])}
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]
