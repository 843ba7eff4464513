"""The folder of a run, and the results in it: metrics by row, in a JSON file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ovml.utils.errors import UserError, first_line

FILES = {"validation": "results.json", "test": "test_results.json"}
"""In a run's folder, by what was evaluated; `ovml fit` writes the first, `ovml test` the second."""


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run; `ovml fit` writes the configuration, `ovml.fit` the results alone."""
    return any((folder / name).is_file() for name in ("config.yaml", FILES["validation"]))


def run_folder(path: str | Path) -> Path:
    """The folder of a run of `ovml fit`, given it or a file inside it.

    Raises:
        UserError: There is no such run.
    """
    path = Path(path)
    for folder in (path, *path.parents[:4]):  # as in RUN/STAGE/log/checkpoints/FILE
        if os.path.exists(path) and is_run(folder):
            return folder
    raise UserError(
        f"ckpt_path {path}: not a run; give 'last', a run's folder (with its config.yaml) or a checkpoint inside one"
    )


def read_results(file: Path, advice: str) -> dict[str, dict[str, float]]:
    """Read metrics by row: `zero-shot`, then the stages by name.

    Args:
        file: The JSON file.
        advice: What to do if it is damaged.

    Returns:
        Empty where there is no such file.

    Raises:
        UserError: It is not JSON, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        return {str(row): _metrics(values) for row, values in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({first_line(error)}); {advice}") from error


def _metrics(values: Any) -> dict[str, float]:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is not a number")
    return dict(values)
