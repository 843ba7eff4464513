"""What the pages and the docstrings say is there, and what is there is said."""

import argparse
import ast
import importlib
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import ovml
from ovml.classifier import OVMultiLabelClassifier
from ovml.cli.main import COMMANDS, command, main
from ovml.cli.prepare import DATA_SETS
from ovml.cli.prepare_folder import option_parser
from ovml.metrics.functional import average_precision
from ovml.utils.resources import config_path

ROOT = Path(__file__).parents[2]
SOURCE = Path(ovml.__file__).parent
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
EXPORTING = [
    "ovml",
    "ovml.heads",
    "ovml.prompts",
    "ovml.losses",
    "ovml.distillation",
    "ovml.metrics",
    "ovml.data",
    "ovml.training.callbacks",
]
NOT_EXPORTING = ["ovml.training.stages", "ovml.encoders", "ovml.vocabulary", "ovml.inference.tagger"]
MODULES = sorted(
    ".".join(["ovml", *path.relative_to(SOURCE).with_suffix("").parts])
    for path in SOURCE.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)


def public_objects(module):
    """Functions and classes that a module defines, with the classes' own methods and properties."""
    for name, value in vars(importlib.import_module(module)).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"{module}.{name}", value
        if inspect.isclass(value):
            for inner, member in vars(value).items():
                if not inner.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    yield f"{module}.{name}.{inner}", member


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_has_a_docstring(module):
    try:
        objects = dict(public_objects(module))
    except ImportError as error:
        pytest.skip(f"needs a package that is not installed: {error}")
    assert [name for name, value in objects.items() if not (value.__doc__ or "").strip()] == []


def exported(module):
    """What a package exports, or the classes that a module defines."""
    if module in EXPORTING:
        package = importlib.import_module(module)
        return {name: getattr(package, name) for name in package.__all__ if name != "__version__"}
    return {name: value for name, value in public_objects(module) if inspect.isclass(value)}


@pytest.mark.parametrize("module", EXPORTING + NOT_EXPORTING)
def test_what_is_exported_has_an_example(module):
    silent = [n for n, v in exported(module).items() if not re.search(r">>> |Example:|```", inspect.getdoc(v) or "")]
    assert silent == []


@pytest.mark.parametrize("package", ["ovml.heads", "ovml.prompts", "ovml.losses", "ovml.distillation", "ovml.metrics"])
def test_parts_tell_their_shapes(package):
    silent = []
    for name, part in exported(package).items():
        methods = ("forward", "embed", "update") if inspect.isclass(part) else ()
        texts = [inspect.getdoc(getattr(part, method)) or "" for method in methods if hasattr(part, method)]
        has_tensors = texts or package != "ovml.metrics"
        silent += [name] if has_tensors and "`[" not in "".join([inspect.getdoc(part) or "", *texts]) else []
    assert silent == []


def test_every_module_is_in_the_reference():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    named = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert sorted(named) == MODULES, "add or remove its line '::: ovml....' in a page of docs/reference/"


# ---------------------------------------------------------------------- commands


def code_lines(page):
    """Lines of code on a page, fenced or indented, those that go on in the next line joined."""
    fenced = False
    for line in re.sub(r" \\\n +", " ", page.read_text()).splitlines():
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            yield line.strip()


def shell_commands():
    """Every call of `ovml` in code on the pages: page, arguments."""
    call = re.compile(r"(?:\$ )?(?:[A-Z]+=\S* )*(?:.*&& |.*\| )?(?:\.venv/bin/)?ovml ([a-z].*)")
    for page in PAGES:
        for line in code_lines(page):
            if found := call.fullmatch(line):
                yield page, shlex.split(found[1], comments=True)


CALLS = list(shell_commands())


def test_the_pages_are_full_of_commands():
    assert len(CALLS) > 40
    assert {"fit", "test", "tag", "prepare"} <= {call[0] for _, call in CALLS}


def test_commands_on_the_pages_exist():
    inline = [(page, [name]) for page in PAGES for name in re.findall(r"`ovml ([a-z-]+)[ `]", page.read_text())]
    assert [(page.name, call) for page, call in CALLS + inline if call[0] not in COMMANDS] == []


def test_shipped_configurations_on_the_pages_exist():
    own = {"my.yaml", "loggers.yaml"}
    for _, call in CALLS:
        for option, value in pairwise(call):
            if option == "--config" and value not in own:
                assert Path(config_path(value)).is_file()


@pytest.fixture(scope="module")
def options():
    """What each command takes: of Lightning's commands the first two parts of an option's name."""
    names = {
        "trainer": inspect.signature(Trainer).parameters,
        "model": inspect.signature(OVMultiLabelClassifier).parameters,
        "data": {name for cls in _data_modules() for name in _arguments(cls)},
    }
    own = {"--config", "--ckpt_path", "--seed_everything", "--plots", "--print_config", "--data"}
    return {f"--{group}.{name}" for group, inside in names.items() for name in inside} | own


def _data_modules():
    packages = [importlib.import_module(name) for name in ("ovml.data", "worlds.emoji")]
    return [getattr(data, name) for data in packages for name in data.__all__ if name.endswith("DataModule")]


def _arguments(cls):
    return {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}


def test_options_on_the_pages_exist(options, capsys):
    helps = {}
    wrong = []
    for page, call in CALLS:
        command = call[0]
        given = [word.split("=")[0] for word in call if word.startswith("--")]
        if command in ("fit", "validate", "test", "predict"):
            wrong += [(page.name, o) for o in given if ".".join(o.rstrip("+").split(".")[:2]) not in options]
            continue
        words = [command, *([call[1]] if command == "prepare" and call[1] in DATA_SETS else [])]
        key = " ".join(words)
        if key not in helps:
            with pytest.raises(SystemExit):
                main([*words, "--help"])
            helps[key] = capsys.readouterr().out
        wrong += [(page.name, o) for o in given if not re.search(rf"{re.escape(o)}\b", helps[key])]
    assert wrong == []


# ---------------------------------------------------------------------- Python


def python_blocks():
    for page in PAGES:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
            yield pytest.param(block, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("block", list(python_blocks()))
def test_python_on_the_pages_imports_what_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ovml":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_loop_on_the_evaluation_page_is_the_metric():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    names = {}
    exec(re.search(r"```python\n(def average_precision.*?)```", page, re.DOTALL)[1], names)
    torch.manual_seed(0)
    scores, present = torch.randn(50, 4), torch.rand(50, 4) < 0.3
    loop = [names["average_precision"](*columns) for columns in zip(scores.T.tolist(), present.T.tolist(), strict=True)]
    assert average_precision(scores, present.int()).tolist() == pytest.approx(loop, abs=1e-6)


def test_names_on_the_pages_exist():
    missing = []
    for page in PAGES:
        for name in re.findall(r"(?<![\w.])(ovml(?:\.\w+)+)", re.sub(r"^::: .*$", "", page.read_text(), flags=re.M)):
            if not _is_there(name) and not name.endswith((".py", ".json", ".main")):
                missing.append((page.name, name))
    assert missing == []


def _is_there(name):
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


# ---------------------------------------------------------------------- links


def test_links_outside_of_the_site_exist():
    """Those between the site's own pages are checked by mkdocs."""
    missing = []
    for page in (path for path in PAGES if path.parent.name != "docs" and "docs" not in path.parts[-3:-1]):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text()):
            if not target.startswith("http") and not (page.parent / target).exists():
                missing.append((page.name, target))
    assert missing == []


# ---------------------------------------------------------------------- the site


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_on_the_pages_has_a_language(page):
    opening = re.findall(r"^```.*$", page.read_text(), re.MULTILINE)[::2]
    assert [fence for fence in opening if fence == "```"] == [], "say which: sh, console, python, yaml, json or text"


def test_the_navigation_is_short():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), _AnyTag)["nav"]

    def pages(items):
        for value in (next(iter(item.values())) if isinstance(item, dict) else item for item in items):
            yield from [value] if isinstance(value, str) else pages(value)

    listed = list(pages(nav))
    assert len(set(listed)) == len(listed) <= 30
    assert listed[:4] == ["index.md", "quickstart.md", "tagging.md", "data/own.md"]


class _AnyTag(yaml.SafeLoader):
    """Reads tags of mkdocs as text."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: suffix)


@pytest.fixture(scope="module")
def cli_page():
    """The page of the commands as mkdocs gets it from the hook."""
    hook = runpy.run_path(str(ROOT / "docs" / "build_cli_page.py"))
    return hook["on_page_markdown"]((ROOT / "docs" / "reference" / "cli.md").read_text()), hook


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_each_command_and_its_options(name, cli_page):
    page, hook = cli_page
    section = re.search(rf"^## ovml {name} {{#{name}}}$.*?(?=^## )", page, re.MULTILINE | re.DOTALL)[0]
    parser = command(name).parser()
    training = COMMANDS[name][0].endswith(":Training")
    parsers = [(parser, section if not training or name == "fit" else page)]
    if name == "prepare":
        parsers += [(option_parser("", resolve_name(place)), section) for place in DATA_SETS.values()]
    if training:
        parsers.append((hook["training_parser"](name), page[page.index("{#all-options}") :]))
    for parser, text in parsers:
        names = {
            name for action in parser._actions if action.help != argparse.SUPPRESS for name in action.option_strings
        }
        if name == "prepare":
            names = {option.replace("_", "-") for option in names}
        shown = set(re.findall(r"`(-[^` \[]+)", text))
        assert {option for option in names - shown if "-->" not in option} <= {"-h", "--help"}


def test_pages_that_are_not_in_the_navigation_are_linked():
    text = "".join(page.read_text() for page in PAGES)
    nav = (ROOT / "mkdocs.yml").read_text()
    hidden = [page for page in PAGES if "docs" in page.parts and page.relative_to(ROOT / "docs").as_posix() not in nav]
    assert [page.name for page in hidden if not re.search(rf"\]\((\w*/|\.\./)*{page.name}[)#]", text)] == []


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the site's tools are not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name: path.read_text() for path in (tmp_path / "site").rglob("index.html")}
    assert "TwoStreamHead" in pages["parts"]
    assert "&gt;&gt;&gt;" in pages["parts"]  # an example is shown as code
    assert "<blockquote>" not in pages["parts"]  # and not as Markdown's quotations
    assert "MaxPatchHead" in pages["own_head"]
    assert "BiasStage" in pages["own_stage"]
    assert "--8&lt;--" not in pages["own_head"]
    assert "--trainer.max_epochs" in pages["cli"]
    assert "Add a head" in pages["contributing"]
    assert 'class="md-tabs__item md-tabs__item--active"' in pages["json"]  # is not in the navigation
    assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]+\.(?:js|css|woff2?|png|svg)"', "".join(pages.values()))
