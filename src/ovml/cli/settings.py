"""Checks of configurations and of the trainer's settings that need no torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ovml.utils.errors import UserError
from ovml.utils.files import check_folder, read_text
from ovml.utils.schema import short
from ovml.utils.yaml import load_yaml, yaml_reason

MOST_CONFIG_BYTES = 2**20
MOST_CONFIG_NODES = 20_000
"""Size of the largest configuration, and its values and keys after its aliases are expanded."""
LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "devices": -1,
    "gradient_clip_val": 0,
    "limit_predict_batches": 0,
    "limit_test_batches": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "val_check_interval": 0,
}
"""Smallest values of the trainer's numbers; Lightning takes some smaller ones in silence, and larger ones overflow."""
MOST = 2**31 - 1
MOST_SEED = 2**32 - 1
"""Largest seed of NumPy."""


MACHINE_ONLY = {
    "ckpt_path",
    "plots",
    "data.cache_dir",
    "data.eval_batch_size",
    "data.num_workers",
    "trainer.benchmark",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.num_sanity_val_steps",
    "trainer.profiler",
}
"""Settings that change neither what a run learns nor its results."""


def check_config(path: str | Path, option: str = "--config ") -> dict[str, Any]:
    """Check that a file is a configuration that can be loaded.

    Args:
        path: The file.
        option: What an error writes before the path.

    Returns:
        Its content.

    Raises:
        UserError: It is not UTF-8 text, no YAML, too large, or has no keys and values.
    """
    where = f"{option}{path}: "
    try:
        with open(path, "rb") as file:  # jsonargparse reads UTF-8 alone; the last character may be cut
            codecs.getincrementaldecoder("utf-8")().decode(file.read(MOST_CONFIG_BYTES + 1))
        content = load_yaml(read_text(path, "configuration", "YAML", MOST_CONFIG_BYTES), MOST_CONFIG_NODES)
    except OSError as error:
        raise UserError(f"{where}cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}not a YAML file ({yaml_reason(error)}); fix it") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}no configuration; it holds keys such as model and data")
    for key, value in content.items():
        if not isinstance(key, str):
            raise UserError(f"{where}the key {key!r} is not text; write keys such as model and data")
        if key in ("model", "trainer") and not isinstance(value, (dict, str, type(None))):
            raise UserError(f"{where}{key} holds {str(value)[:80]!r}; expected its settings by name")
    return content


def check_settings(config: Mapping[str, Any]) -> None:
    """Check the seed, the trainer's numbers, and that run folders can be made.

    Args:
        config: As parsed, with the keys `seed_everything` and `trainer`.

    Raises:
        UserError: One is out of its range.
    """
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed <= MOST_SEED:
        raise UserError(f"--seed_everything: must be from 0 to {MOST_SEED:,}; got {short(seed)}")
    trainer = config["trainer"]
    for name, least in LEAST.items():
        value = trainer.get(name)
        if isinstance(value, str) and value.removeprefix("-").isdecimal():  # devices may be text
            value = int(value)
        if isinstance(value, (int, float)) and not least <= value <= MOST:
            raise UserError(f"--trainer.{name}: must be from {least} to {MOST:,}; got {short(value)}")
    check_folder(trainer["default_root_dir"], "--trainer.default_root_dir")
