"""The folder of one run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ovml.metrics.results import FILES, read_results, run_folder
from ovml.saving.checkpoint import newest_checkpoint
from ovml.utils.errors import UserError
from ovml.utils.files import locked, write_text


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: a checkpoint folder per stage, the configuration, the results.

    Args:
        path: `ROOT/version_N`.

    Example:
        >>> RunFolder(Path("runs/demo/version_0")).checkpoint("vision").as_posix()
        'runs/demo/version_0/vision/last.ckpt'
    """

    path: Path

    @classmethod
    def new(cls, root: str | Path) -> RunFolder:
        """Make the next free `version_N` below a root folder; runs that start together get one each."""
        number = max(cls._versions(root), default=-1) + 1
        while True:
            try:
                (path := Path(root) / f"version_{number}").mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                number += 1

    @classmethod
    def find(cls, path: str | Path, root: str | Path) -> RunFolder:
        """The run that `path` means: `last` (the newest below `root`), a run folder, or a file inside one.

        Raises:
            UserError: There is no such run.
        """
        if str(path) == "last":
            versions = cls._versions(root)
            if not versions:
                raise UserError(f"no run to resume in {root}; leave --ckpt_path out to start one")
            return cls(Path(root) / f"version_{max(versions)}")
        return cls(run_folder(path))

    @staticmethod
    def _versions(root: str | Path) -> list[int]:
        found = (re.fullmatch(r"version_(\d+)", p.name) for p in Path(root).glob("version_*"))
        return [int(match[1]) for match in found if match]

    def checkpoint(self, stage: str) -> Path:
        """Where a stage's newest checkpoint is kept."""
        return self.path / stage / "last.ckpt"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training this run until the block or the process ends, however it ends.

        Raises:
            UserError: Another process trains it.
        """
        busy = f"{self.path}: another process trains this run; wait for it, or leave ckpt_path out to start another run"
        with locked(self.path / ".lock", busy):
            yield

    def newest_checkpoint(self) -> Path:
        """The checkpoint of the last stage that the run has come to.

        Raises:
            UserError: The run has none yet.
        """
        return newest_checkpoint(self.path)

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """Validation metrics of each finished row: `zero-shot`, then the stages by name.

        Raises:
            UserError: The file is damaged.
        """
        return read_results(self.path / FILES["validation"], "delete it, and ovml fit evaluates again")

    def add_result(self, row: str, metrics: dict[str, float]) -> None:
        """Record a row's metrics; its presence marks a stage as finished."""
        write_text(self.path / FILES["validation"], json.dumps({**self.results, row: metrics}, indent=1))
