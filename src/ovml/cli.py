"""The `ovml` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ovml import __version__
from ovml.errors import UserError, one_line

COMMANDS = {
    "prepare": "check a data set on disk, count what is there, and read its annotations once",
    "fit": "train the stages of a configuration, one after the other",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split: zero-shot CLIP and every stage",
    "predict": "write the best labels of every test image",
    "tag": "rank labels for images, folders of images, or both",
}

HELP = """usage: ovml [-h] [--version] COMMAND ...

Open-vocabulary multi-label image classification.

commands:
{commands}

'ovml COMMAND --help' tells more. Try: ovml fit --config demo.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 if interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())), end="")
        return 0
    if args[0] == "--version":
        print(f"ovml {__version__}")
        return 0
    try:
        _command(args[0])(args)
    except UserError as error:
        print(f"ovml: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns an interrupt into an exit.
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        resume = "; 'ovml fit ... --ckpt_path last' goes on from the last finished epoch" if args[0] == "fit" else ""
        print(f"ovml: interrupted{resume}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


def _command(name: str) -> Callable[[list[str]], None]:
    if name == "tag":
        from ovml.cli_tag import tag

        return tag
    if name == "prepare":
        from ovml.cli_prepare import prepare

        return prepare
    if name in COMMANDS:
        from ovml.cli_lightning import run_lightning

        return run_lightning
    raise UserError(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")


def config_path(name: str) -> str:
    """Find a configuration: a path, or the bare name of one that ovml ships.

    Raises:
        UserError: There is no such file.
    """
    packaged = Path(__file__).parent / "configs"
    for path in (Path(name), packaged / name):
        if path.is_file():
            return str(path)
    shipped = ", ".join(sorted(p.name for p in packaged.glob("*.yaml")))
    raise UserError(f"--config {name}: no such file; give a path or one of those that ovml ships: {shipped}")
