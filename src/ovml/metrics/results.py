"""Results of a run: metrics by row, in a JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ovml.utils.errors import UserError, first_line

FILES = {"validation": "results.json", "test": "test_results.json"}
"""In a run's folder, by what was evaluated; `ovml fit` writes the first, `ovml test` the second."""


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
