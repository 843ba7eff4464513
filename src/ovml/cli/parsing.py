"""Parsers, argparse's and jsonargparse's, whose errors are one line in plain words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from difflib import get_close_matches
from inspect import isabstract
from pkgutil import resolve_name
from typing import Any, NoReturn

from ovml.utils.errors import UserError, causes

LONGEST = 80
"""Characters of a value that an error repeats."""


class OptionError(UserError):
    """What is wrong with an option.

    Args:
        key: The option without dashes, or part of it: each class has a parser of its own arguments. May be empty.
        reason: What is wrong.
        prog: The command.
    """

    def __init__(self, key: str, reason: str, prog: str) -> None:
        where = f"--{key}: " if key else ""
        super().__init__(where + reason + ("" if reason.endswith("?") else f"; see '{prog} --help'"))
        self.key, self.reason = key, reason


class UserErrors:
    """Mixin of parsers, argparse's and jsonargparse's, whose errors are `OptionError`s."""

    prog: str
    _actions: list[argparse.Action]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error instead of printing the usage."""
        found = re.match(r'Parser key "([^"]+)":[\s-]*', message := message.strip().removeprefix("argument "))
        key = found[1] if found else ""
        parser = getattr(ex, "subcommand_parser", self)
        inner = next((error for error in causes(ex) if isinstance(error, OptionError)), None)
        if inner is None:
            text = message[found.end() if found else 0 :]
            reason = _no_option(text, parser._names()) or _no_class(text) or _no_value(text) or _joined(text)
        else:
            key, reason = ".".join(filter(None, (key, inner.key))), inner.reason
        raise OptionError(key, reason, parser.prog.replace(" [options]", "")) from ex

    def _names(self) -> list[str]:
        """Names of all options, without dashes."""
        options = [option for action in self._actions for option in action.option_strings]
        return [option[2:] for option in options if option.startswith("--") and option[2:].rpartition(".")[2] != "help"]


class Parser(UserErrors, argparse.ArgumentParser):
    """A parser whose errors are `UserError`s."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name is meant, or which there are.

    >>> nearest("trainer.max_epoch", ["trainer.max_epochs", "trainer.max_steps", "model.head"])
    '; did you mean trainer.max_epochs?'
    >>> nearest("colour", ["top_k", "chunk"])
    '; there are chunk, top_k'
    """
    known = sorted(set(known))
    group, _, last = name.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == group}
    near = [beside[word] for word in get_close_matches(last, beside, 1, 0.7)] or get_close_matches(name, known, 1, 0.75)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 18 else ""


def _joined(text: str) -> str:
    return re.sub(r'Parser key "([^"]+)"', r"\1", " ".join(text.split()))


def _no_option(text: str, known: list[str]) -> str | None:
    """Of an option or an argument of a class that does not exist."""
    if found := re.match(r"unrecognized arguments: (?!--)(\S+)", text):
        return f"unexpected argument {found[1]!r}"
    refused = r"unrecognized arguments: --([^=\s]*)|(?:Subcommand|Group) '[^']*' does not accept option '([^']+)'"
    if found := re.match(refused, text):
        name = found[1] or found[2]
        return f"no option --{name}" + nearest(name, known).replace("mean ", "mean --")
    if found := re.match("Option '([^']+)' is not accepted", text):
        name = found[1].partition(".")[0]
        return f"no argument {name}" + nearest(name, [*known, *(["init_args"] if "." in found[1] else [])])
    return None


_CLASS_NAME = re.compile(
    r"(?:Expected a dot import path string: |Unexpected import path format: |Import path )(?P<name>[^\s]+)"
    r"|Problem with given class_path '(?P<path>[^']*)':\s*(?P<why>[^\n]*)"
)


def _no_class(text: str) -> str | None:
    """Of a class that does not exist, cannot be imported, is of another kind, or must not be named by strangers."""
    if denied := re.search(r"Importing '[\w.]+' is not allowed", text):
        return denied[0]
    base = re.search(r"<class '([\w.]+\.\w+)'>|\[([\w.]+\.\w+)\]", text.partition("Subtypes: ")[2])
    place = base and (base[1] or base[2])
    kind = place.rpartition(".")[2] if place else "class"
    classes = _subclasses(resolve_name(place)) if place else set()
    found = _CLASS_NAME.search(text)
    typed = re.search("Expected an? (?:<class '(?!NoneType)|typing)|Not of type", text)
    if found is None:
        is_class = "Not a valid subclass" in text or (classes and not typed)
        return f"expected the name of a {kind}, or class_path and init_args; got {_value(text)}" if is_class else None
    if typed and not classes:
        return None
    name, why = found["name"] or found["path"], found["why"] or "no such class"
    module, _, own = name.rpartition(".")
    if "No module named" in why:
        return f"{name}: {why.strip()}; install the package that has it, or run ovml in the folder of its file"
    if own in classes or (module and not module.startswith("ovml")):
        return f"{name}: cannot be taken as a {kind} ({why.strip()})"
    return f"no {kind} {name}{nearest(own, classes)}"


def _subclasses(base: Any) -> set[str]:
    """Names of the public classes of ovml and Lightning that are imported and have a base."""
    found: set[str] = set()
    kinds: list[type] = base.__subclasses__() if isinstance(base, type) else []
    for kind in kinds:
        found |= _subclasses(kind)
        is_ours = kind.__module__.partition(".")[0] in ("ovml", "lightning")
        if is_ours and not (kind.__name__.startswith("_") or isabstract(kind)):
            found.add(kind.__name__)
    return found


def _no_value(text: str) -> str | None:
    """Of a value of another type."""
    if found := re.match(r"Unable to load config '([^']*)'\s*- (.*)", text, re.DOTALL):
        reason = "" if "Unable to load" in found[2] else f" ({_joined(found[2])[: 2 * LONGEST]})"
        return f"expected settings by name, or a YAML file of them; got {found[1][:LONGEST]!r}{reason}"
    kinds = re.findall(r"Expected an? (<class '[^']+'>|typing\.Literal\[.*?\])|Not of type (\w+)", text)
    expected = dict.fromkeys(_type_name(kind or restricted) for kind, restricted in kinds)
    value = _value(text)
    return f"expected {' or '.join(expected)}{f'; got {value}' if value else ''}" if expected else None


def _type_name(text: str) -> str:
    if text.startswith("typing"):
        return text[len("typing.Literal[") : -1].replace("'", "").replace(", ", "|")
    if not text.startswith("<"):  # such as PositiveInt
        return " ".join(re.findall("[A-Z][a-z]*", text)).lower()
    name = text.split("'")[1].rpartition(".")[2]
    return {"NoneType": "null", "str": "text", "tuple": "list", "Iterable": "list", "float": "number"}.get(name, name)


def _value(text: str) -> str:
    found = re.search(r"Given value: (?:NestedArg\(key='[^']*', val=(?P<quoted>.*)\)|(?P<plain>.*))$", text, re.DOTALL)
    found = found or re.search(r"Got value: (?P<quoted>)(?P<plain>[^\n]*)", text)
    return "" if found is None else repr(" ".join((found["quoted"] or found["plain"]).split()).strip("'")[:LONGEST])
