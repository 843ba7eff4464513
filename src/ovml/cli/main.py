"""The `ovml` command."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pkgutil import resolve_name

from ovml.cli.command import Command
from ovml.utils.console import QUIET, STANDARD_OUTPUT, accept_any_text, end_results, printable, shortened, show_line
from ovml.utils.errors import UserError, first_line, one_line
from ovml.utils.process import end_at_once

COMMANDS = {
    "prepare": ("ovml.cli.prepare:Prepare", "check a data set on disk, count its images, read its annotations once"),
    "fit": ("ovml.cli.training:Training", "train the stages of a configuration, one after the other"),
    "validate": ("ovml.cli.training:Training", "evaluate on the validation split"),
    "test": ("ovml.cli.training:Training", "evaluate zero-shot CLIP and every stage on the test split"),
    "compare": ("ovml.cli.compare:Compare", "compare runs: the settings that differ, and the results side by side"),
    "predict": ("ovml.cli.training:Training", "write the best labels of every test image"),
    "tag": ("ovml.cli.tag:Tag", "rank labels for images, folders of images, or both"),
    "adapt": ("ovml.cli.adapt:Adapt", "fit a plain CLIP to images without labels"),
    "labels": ("ovml.cli.labels:Labels", "list the label vocabularies that ovml ships, or the names of one"),
    "embed-labels": ("ovml.cli.embed_labels:EmbedLabels", "write the embeddings of label names"),
    "explain": ("ovml.cli.explain:Explain", "draw where in an image its best labels are found"),
    "export": ("ovml.cli.export:Export", "write a model as ONNX or torch.export, to run without ovml"),
    "app": ("ovml.cli.app.command:App", "open a web page that tags images"),
    "import-mkt": ("ovml.cli.import_mkt:ImportMKT", "turn checkpoints of the published MKT code into a model"),
    "doctor": ("ovml.cli.doctor:Doctor", "show what is installed here and whether it works"),
}
"""Class and help line of each command; its module is imported when it runs."""

DEBUG = "OVML_DEBUG"
"""Environment variable; 1 shows the traceback of every error."""

HELP = """usage: ovml [-h] [--version] [--quiet] COMMAND ...

Open-vocabulary multi-label image classification.

commands:
{commands}

'ovml COMMAND --help' lists its options; --quiet prints only results and errors. Try: ovml fit --config demo.yaml"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    It is 0, 2 for bad input, 1 if the machine fails (a full disk, too little memory), 130 or 143 for a signal. These
    end in one line; with `OVML_DEBUG=1` in the environment errors are raised.

    Args:
        argv: Default: the arguments of the process, which then ends at once when this function's caller exits.
    """
    code = _exit_code(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        end_at_once(code)
    gc.unfreeze()  # of `starting`, for a caller that goes on
    return code


def _exit_code(args: list[str]) -> int:
    """Run the command line and turn errors into lines and exit codes."""
    if "--quiet" in args:
        args.remove("--quiet")
        os.environ[QUIET] = "1"
    accept_any_text()
    warnings.filterwarnings("ignore", "Image size .* exceeds limit", RuntimeWarning)
    try:
        _run(args)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and error.filename in (None, STANDARD_OUTPUT):
            return 0  # the reader of the results, such as `head`, has ended
        message = one_line(error) if isinstance(error, UserError) else machine_fault(error)
        if message is None or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        print(f"ovml: error: {shortened(printable(message))}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns both signals into an exit.
        if type(stop).__name__ == "SIGTERMException":
            ended, code = "terminated", 128 + signal.SIGTERM
        elif isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            ended, code = "interrupted", 128 + signal.SIGINT
        else:
            raise
        print("; ".join([f"ovml: {ended}", *map(printable, getattr(stop, "__notes__", []))]), file=sys.stderr)
        return code
    return 0


def _run(args: Sequence[str]) -> None:
    """Run a command and write its results to the end."""
    try:
        if not args or args[0] in ("-h", "--help"):
            show_line(HELP.format(commands="\n".join(f"  {name:13}{text}" for name, (_, text) in COMMANDS.items())))
        elif args[0] == "--version":
            show_line(f"ovml {metadata.version('ovml')}")
        else:
            command(args[0])(args[1:])
    except BaseException as error:
        try:
            end_results()
        except OSError as broken:
            if isinstance(error, OSError):  # the same one, which names no file
                raise broken from error
        raise
    end_results()


def machine_fault(error: Exception) -> str | None:
    """One line on an error that is the machine's fault; `None` for any other error.

    >>> machine_fault(OSError(28, "No space left on device", "runs/a.ckpt"))
    'runs/a.ckpt: No space left on device; make room, or choose another place'
    >>> machine_fault(IsADirectoryError(21, "Is a directory", "results.json"))
    'results.json: Is a directory; move it away'
    >>> machine_fault(ZeroDivisionError())
    """
    reason = first_line(error)
    if isinstance(error, MemoryError) or "out of memory" in reason or "not enough memory" in reason:
        return f"out of memory ({reason}); take a smaller batch size, or fewer workers"
    if isinstance(error, RuntimeError) and reason.startswith("DataLoader worker"):
        return f"{reason}: the system ended a process that reads images, often for lack of memory; take fewer workers"
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        in_the_way = error.errno in (errno.EISDIR, errno.ENOTDIR)
        advice = "move it away" if in_the_way else "make room, or choose another place"
        return f"{where}{error.strerror or reason}; {advice}"
    return None


def command(name: str) -> Command:
    """Import a command and make it.

    Raises:
        UserError: There is no command of that name.
    """
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; the commands are {', '.join(COMMANDS)}")
    place, help = COMMANDS[name]
    made: Command = resolve_name(place)(name, help)
    return made
