"""Fixtures: the reference numbers, and a random CLIP checkpoint small enough to run anywhere."""

from __future__ import annotations

import gc
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # each of several processes has its share of the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import psutil
import pytest
import torch
import yaml
from hypothesis import settings
from PIL import Image
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network for anything


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_a_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep cached label embeddings in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVML_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


settings.register_profile("ovml", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("ovml")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module", autouse=True)
def no_classes_of_torch_export() -> Iterator[None]:
    """Collect the classes that torch.export makes: they have names of ovml's, and bare names would be ambiguous."""
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_tests() -> Iterator[None]:
    """Fail if a process that a test started is still there at the end, also one whose parent is gone."""
    mark = {"OVML_TESTS": uuid.uuid4().hex}  # what is started inherits it
    os.environ.update(mark)
    yield
    this = psutil.Process()
    children, left = set(this.children(recursive=True)), []
    for process in psutil.process_iter():
        try:
            is_ours = process in children or process.environ().items() >= mark.items()
            if is_ours and process != this and "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                left.append(f"{process.pid}: {' '.join(process.cmdline())}")
        except psutil.Error:  # it has just ended, or is another user's
            continue
    assert not left


def reference_numbers(name: str) -> Any:
    """Tensors or plain numbers that published code gives; the test is skipped where they are absent."""
    from safetensors.torch import load_file

    path = SHARED / "reference" / name
    if not path.is_file():
        pytest.skip(f"the reference numbers are not here: {path}")
    return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())


@pytest.fixture(scope="session")
def ram_golden() -> dict[str, Tensor]:
    """Tensors that the published code of RAM gives."""
    return reference_numbers("ram_golden.safetensors")


@pytest.fixture(scope="session")
def ram_json() -> dict[str, Any]:
    """Plain numbers that the published code of RAM gives."""
    return reference_numbers("ram_golden.json")


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Tensors that the published code gives."""
    return reference_numbers("reference_golden.safetensors")


@pytest.fixture(scope="session")
def golden_json() -> dict[str, Any]:
    """Plain numbers that the published code gives."""
    return reference_numbers("reference_golden.json")


@pytest.fixture(scope="session")
def kin_golden() -> dict[str, Tensor]:
    """Tensors that the published code of CoOp, DualCoOp and the asymmetric loss gives."""
    return reference_numbers("dualcoop_asl_golden.safetensors")


@pytest.fixture(scope="session")
def kin_golden_json() -> dict[str, Any]:
    """Plain numbers that the published code of CoOp, DualCoOp and the asymmetric loss gives."""
    return reference_numbers("dualcoop_asl_golden.json")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random CLIP: 48 px, 16 patches, 3 blocks, a tokenizer of letters."""
    return random_clip(tmp_path_factory.mktemp("clip"), blocks=3)


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`tiny` with one block of its image tower, for tests that trace it often."""
    return random_clip(tmp_path_factory.mktemp("shallow"), blocks=1)


def random_clip(folder: Path, blocks: int) -> str:
    """Write a random CLIP into a folder."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tower = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "quick_gelu"}
    end = vocab["<|endoftext|>"]
    text = {"vocab_size": len(vocab), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(
            vision_config={**tower, "num_hidden_layers": blocks, "image_size": 48, "patch_size": 12},
            text_config={**tower, **text, "num_hidden_layers": 2, "max_position_embeddings": 77},
            projection_dim=16,
        )
    )
    clip.save_pretrained(folder)
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def config(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small experiment: a random CLIP, two stages of three epochs."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    stages = [
        {"class_path": f"ovml.training.{name}", "init_args": {"epochs": 3, "warmup_epochs": 1}}
        for name in ("VisionStage", "PromptStage")
    ]
    content = {
        "seed_everything": 5,
        "model": {"clip": tiny, "stages": stages},
        "data": {"class_path": "ovml.data.DemoDataModule", "init_args": {"cache_dir": str(path.parent)}},
        "trainer": {"enable_progress_bar": False},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small PNG."""
    path = tmp_path / "picture.png"
    Image.effect_mandelbrot((60, 50), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    return path
