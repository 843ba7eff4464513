"""Hook of the site's build: fills `reference/cli.md` with the options of all commands, read from their parsers."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from pkgutil import resolve_name
from typing import Any

import jsonargparse

import ovml.data
from ovml.cli.lightning import OVMLCLI
from ovml.cli.main import COMMANDS, command
from ovml.cli.prepare import DATA_SETS
from ovml.cli.prepare_folder import option_parser
from ovml.cli.training import OPTIONS, Training
from ovml.data import MultiLabelDataModule

GUIDES = {
    "prepare": "data/index.md#what-ovml-prepare-does",
    "fit": "recipes.md",
    "validate": "evaluation.md",
    "test": "evaluation.md",
    "predict": "recipes.md#evaluation-only",
    "compare": "comparing.md",
    "tag": "tagging.md",
    "adapt": "training_free.md#fit-on-images-without-labels",
    "labels": "tagging.md#packaged-vocabularies",
    "embed-labels": "export.md",
    "explain": "pictures.md",
    "export": "export.md",
    "app": "app.md",
    "import-mkt": "sharing.md#checkpoints-of-the-published-mkt-code",
    "doctor": "pictures.md#when-something-does-not-work",
}
"""The guide to each command."""
TITLES = {"--trainer": "Trainer", "--model": "Model", "--data": "Data set", "--ckpt_path": "Checkpoint"}
"""Titles of the groups of LightningCLI, by the first option."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the two lists of the page."""
    if "<!-- commands -->" not in markdown:
        return markdown
    markdown = markdown.replace("<!-- commands -->", "\n".join(commands()))
    return markdown.replace("<!-- all-options -->", "\n".join(all_options()))


def commands() -> Iterator[str]:
    """A table of the commands, then a section for each."""
    yield "| command | what it does |\n|---|---|"
    yield from (f"| [`ovml {name}`](#{name}) | {text} |" for name, (_, text) in COMMANDS.items())
    for name in COMMANDS:
        made = command(name)
        parser = made.parser()
        guide = f" [Guide](../{GUIDES[name]})." if name in GUIDES else ""
        yield f"\n## ovml {name} {{#{name}}}\n\n{parser.description}{guide}\n"
        if isinstance(made, Training):
            yield from training_options(name, parser)
            yield "\n```sh\n" + "\n".join(made.examples) + "\n```\n"
        else:
            yield from options(parser)
        for data_set, place in DATA_SETS.items() if name == "prepare" else ():
            yield f"\n### ovml prepare {data_set}\n"
            yield from options(option_parser(f"ovml prepare {data_set}", resolve_name(place)), "-")


def training_options(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """The common options of `ovml fit`; of the other commands, which of them they lack."""
    if name == "fit":
        yield from options(parser)
        yield "\n`ovml fit --help-all` prints [all options](#all-options).\n"
    else:
        yield usage(parser)
        given = names(parser)
        missing = ", ".join(f"`{option}`" for option in names(command("fit").parser()) if option not in given)
        yield f"\nThe [options](#all-options) are those of [`ovml fit`](#fit), except {missing}.\n"


def names(parser: argparse.ArgumentParser) -> list[str]:
    """The long names of all options."""
    return sorted(name for action in parser._actions for name in action.option_strings if name.startswith("--"))


def options(parser: argparse.ArgumentParser, separator: str = "_") -> Iterator[str]:
    """Usage and options of a parser, grouped as in its help."""
    yield usage(parser, separator)
    for group in parser._action_groups:
        title = "" if group.title == "options" else f"**{str(group.title).capitalize()}**"
        yield from table(title, group._group_actions, separator)


def usage(parser: argparse.ArgumentParser, separator: str = "_") -> str:
    """The usage, without the indentation that the name of the command asks for."""
    text = re.sub(r"\n\s+", "\n    ", parser.format_usage().removeprefix("usage: ").strip())
    return f"```text\n{re.sub(r'--[a-z_]+', lambda name: name[0].replace('_', separator), text)}\n```"


def all_options() -> Iterator[str]:
    """The options of Lightning's commands: those of `ovml fit`, what others add, and those of the data modules."""
    fit, *others = (training_parser(name) for name in ("fit", "validate", "test", "predict"))
    for group in fit._action_groups:
        first = next((a.option_strings[0] for a in group._group_actions if a.option_strings), "")
        title = TITLES.get(re.sub(r"\..*", "", first), "General")
        yield from table(f"### {title}", group._group_actions)
    more = {n: a for p in others for a in p._actions for n in a.option_strings if n not in fit._option_string_actions}
    yield from table("### Other commands than fit", more.values())
    yield from data_table("### Every data set", MultiLabelDataModule, set())
    shared = set(inspect.signature(MultiLabelDataModule).parameters)
    modules = [getattr(ovml.data, name) for name in ovml.data.__all__ if name.endswith("DataModule")]
    for data_module in modules:
        if not any(issubclass(other, data_module) for other in modules if other is not data_module):  # no base class
            yield from data_table(f"### {data_module.__name__}", data_module, shared)


def training_parser(name: str) -> Any:
    """LightningCLI's parser of one of its commands, with all options."""

    class Parsers(OVMLCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise StopIteration(self._parser(name))  # before anything is parsed or made

    try:
        Parsers([name])
    except StopIteration as stop:
        return stop.value


def data_table(title: str, data_module: type, skip: set[str]) -> Iterator[str]:
    """The arguments of a data module as options `--data.NAME`."""
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(data_module, "data", skip=skip)
    yield from table(title, [a for a in parser._actions if str(a.option_strings).startswith("['--data.")])


def table(title: str, actions: Iterable[argparse.Action], separator: str = "_") -> Iterator[str]:
    """A table of options and what they mean, and a line of those that show the arguments of a class."""
    shown = [a for a in actions if a.help != argparse.SUPPRESS and (a.option_strings or a.metavar or a.choices)]
    shown = [a for a in shown if a.dest != "help" and "-->" not in str(a.option_strings)]
    helps = [f"`{a.option_strings[0]}`" for a in shown if str(a.option_strings).endswith(".help']")]
    rows = [row(a, separator) for a in shown if not str(a.option_strings).endswith(".help']")]
    if rows:
        yield f'\n{title}\n\n<div class="options" markdown>\n\n| option | meaning |\n|---|---|'
        yield from [*rows, "\n</div>"]
    if helps:
        yield f"\n{', '.join(helps)}: show the arguments of a class.\n"


def row(action: argparse.Action, separator: str) -> str:
    """Names with the value, then the help and the default."""
    typed = type(action).__module__.startswith("jsonargparse")
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
    value = action.metavar or choices or ("" if typed or action.nargs == 0 else action.dest.upper())
    flags = [f"{name.replace('_', separator)} {value}".strip() for name in action.option_strings] or [str(value)]
    text = " ".join((action.help or "").replace("``", "`").split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    own = OPTIONS.get(action.option_strings[0] if action.option_strings else "")
    if own and not own[1].startswith("such"):
        text = own[1]
    elif typed and flags[0].startswith(("--trainer.", "--weights_only")):  # Lightning's texts are long
        text = re.split(r"(?<=[a-z`)\]])\. (?=[A-Z])", text)[0].rstrip(".") + "."
    if typed and action.default not in (None, "", argparse.SUPPRESS) and not re.search("[Dd]efaults?:? ", text):
        text = f"{text.rstrip('.')}. Default: `{action.default}`."
    shown = [re.sub(r" ?\x08", "", flag).replace("|", "\\|") for flag in flags]
    return f"| {', '.join(f'`{flag}`' for flag in shown)} | {cell(text)} |"


def cell(text: str) -> str:
    """Text that a cell of a table shows as it is."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")
