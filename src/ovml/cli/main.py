"""The `ovml` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ovml import __version__
from ovml.utils.console import QUIET
from ovml.utils.errors import UserError, one_line

COMMANDS = {
    "prepare": ("ovml.cli.prepare:prepare", "check a data set on disk, count what is there, read its annotations once"),
    "fit": ("ovml.cli.lightning:run_lightning", "train the stages of a configuration, one after the other"),
    "validate": ("ovml.cli.lightning:run_lightning", "evaluate on the validation split"),
    "test": ("ovml.cli.lightning:run_lightning", "evaluate on the test split: zero-shot CLIP and every stage"),
    "predict": ("ovml.cli.lightning:run_lightning", "write the best labels of every test image"),
    "tag": ("ovml.cli.tag:tag", "rank labels for images, folders of images, or both"),
    "embed-labels": ("ovml.cli.embed_labels:embed_labels", "write the embeddings of label names"),
    "explain": ("ovml.cli.explain:explain_command", "draw where in an image its best labels are found"),
    "export": ("ovml.cli.export:export_command", "write a model as ONNX or torch.export, to run without ovml"),
    "app": ("ovml.cli.app.command:app", "open a web page that tags pictures"),
    "import-mkt": ("ovml.cli.import_mkt:import_mkt", "turn checkpoints of the published MKT code into a model"),
    "completion": ("ovml.cli.completion:completion", "print a script that lets a shell complete commands"),
    "doctor": ("ovml.cli.doctor:doctor", "show what is installed here and whether it works"),
}
"""Where each command's function is, and what it does; its module is loaded when it is run."""

HELP = """usage: ovml [-h] [--version] [--quiet] COMMAND ...

Open-vocabulary multi-label image classification.

commands:
{commands}

'ovml COMMAND --help' tells more; --quiet leaves out all but results and errors. Try: ovml fit --config demo.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 if interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "--quiet" in args:
        args.remove("--quiet")
        os.environ[QUIET] = "1"
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:12}{text}" for name, (_, text) in COMMANDS.items())), end="")
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
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")
    module, _, function = COMMANDS[name][0].partition(":")
    command: Callable[[list[str]], None] = getattr(import_module(module), function)
    return command


def config_path(name: str) -> str:
    """Find a configuration: a path, or the bare name of one that ovml ships.

    Raises:
        UserError: There is no such file.
    """
    packaged = Path(__file__).parents[1] / "resources" / "configs"
    for path in (Path(name), packaged / name):
        if path.is_file():
            return str(path)
    shipped = ", ".join(sorted(p.name for p in packaged.glob("*.yaml")))
    raise UserError(f"--config {name}: no such file; give a path or one of those that ovml ships: {shipped}")
