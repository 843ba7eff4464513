"""Options that do not exist, or have a value that cannot be: one line in plain words, and exit code 2."""

import math
import re

import jsonargparse
import pytest
import yaml
from commands import SMALL

from ovml.cli.command import Command
from ovml.cli.main import COMMANDS, command, main
from ovml.cli.prepare import DATA_SETS
from ovml.cli.training import Training
from ovml.utils.errors import UserError

INTERNALS = re.compile(
    r"Union|subtypes|Parser key|Given value|NestedArg|<class|typing\.|NoneType|\[options\]|Traceback"
)


def error_line(arguments, capsys):
    """The one line that bad input ends in."""
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ovml: error: ")]
    assert not INTERNALS.search(line)
    return line.removeprefix("ovml: error: ")


MISSPELT = {
    "tag": (["tag", "a.png", "--lables", "a"], "no option --lables; did you mean --labels?"),
    "tag with a value": (["tag", "a.png", "--treshold=3"], "no option --treshold; did you mean --threshold?"),
    "nothing near": (["tag", "a.png", "--colour", "red"], "no option --colour; see 'ovml tag --help'"),
    "prepare": (["prepare", "nuswide", "--workrs", "1"], "no option --workrs; did you mean --workers?"),
    "trainer": (
        ["fit", "--trainer.max_epoch", "3"],
        "no option --trainer.max_epoch; did you mean --trainer.max_epochs?",
    ),
    "dashes": (
        ["fit", "--trainer.max-epoch", "3"],
        "no option --trainer.max_epoch; did you mean --trainer.max_epochs?",
    ),
    "model": (["fit", "--model.clp", "x"], "no option --model.clp; did you mean --model.clip?"),
    "group": (["test", "--modell.head", "x"], "no option --modell.head; did you mean --model.head?"),
    "word": (["fit", "word"], "unexpected argument 'word'; see 'ovml fit --help'"),
    "part": (
        ["fit", "--model.head", "LocalHead", "--model.head.topk", "2"],
        "--model.head: no argument topk; did you mean top_k?",
    ),
    "data": (["fit", "--data.trainsize", "3"], "--data: no argument trainsize; did you mean train_size?"),
    "callback": (
        ["fit", "--trainer.callbacks+", "LearnedEMA", "--trainer.callbacks.decy", "3"],
        "--trainer.callbacks: no argument decy; did you mean decay?",
    ),
    "class": (["fit", "--model.head", "LocalHed"], "--model.head: no Head LocalHed; did you mean LocalHead?"),
    "class of ovml": (
        ["fit", "--model.head", "ovml.heads.LocalHed"],
        "no Head ovml.heads.LocalHed; did you mean LocalHead?",
    ),
    "no class": (
        ["fit", "--model.head", "NoHead"],
        "--model.head: no Head NoHead; there are CosineHead, ",
    ),
    "class of another kind": (
        ["fit", "--model.head", "ZLPRLoss"],
        "--model.head: no Head ZLPRLoss; there are CosineHead",
    ),
    "package": (
        ["fit", "--model.head", "nopackage.Head"],
        "nopackage.Head: No module named 'nopackage'; install the package that has it, or run ovml in the folder of",
    ),
    "class in a list": (
        ["fit", "--model.stages", "[VisionStag]"],
        "--model.stages: no Stage VisionStag; did you mean Vis",
    ),
    "data module": (
        ["fit", "--data", "NoData"],
        "--data: no MultiLabelDataModule NoData; there are COCODataModule, ",
    ),
}
VALUES = {
    "int": (
        ["--trainer.max_epochs", "x"],
        "--trainer.max_epochs: expected int or null; got 'x'; see 'ovml fit --help'",
    ),
    "number": (["--model.distillation_weight", "x"], "--model.distillation_weight: expected number; got 'x'"),
    "choice": (
        ["--trainer.precision", "x"],
        "16-mixed|bf16-true|bf16-mixed|32-true|64-true or 64|32|16|bf16 or null; got",
    ),
    "of a part": (
        ["--model.head", "LocalHead", "--model.head.top_k", "x"],
        "--model.head.top_k: expected int; got 'x'",
    ),
    "of the data": (["--data.batch_size", "x"], "--data.batch_size: expected int; got 'x'"),
    "list": (["--model.stages", "3"], "--model.stages: expected list or null; got '3'"),
    "objects": (
        ["--trainer.callbacks", "[3]"],
        "--trainer.callbacks: expected the name of a Callback, or class_path and",
    ),
    "settings": (["--trainer", "3"], "--trainer: expected settings by name, or a YAML file of them; got '3'"),
    "twice": (["--model.stages", "[{a: 1, a: 2}]"], "--model.stages: expected list or null; got '[{a: 1, a: 2}]'"),
}


@pytest.mark.parametrize("case", [*MISSPELT, *VALUES])
def test_what_is_meant_is_named(case, capsys):
    arguments, message = MISSPELT.get(case) or (["fit", *VALUES[case][0]], VALUES[case][1])
    if arguments[0] in ("fit", "test"):
        arguments = [arguments[0], "--config", "demo.yaml", *arguments[1:]]
    assert message in error_line(arguments, capsys)


IN_YAML = {
    "trainer: {max_epoch: 3}": "no option --trainer.max_epoch; did you mean --trainer.max_epochs?",
    "modle: {head: LocalHead}": "no option --modle.head; did you mean --model.head?",
    "model: {heads: LocalHead}": "no option --model.heads; did you mean --model.head?",
    "model: {head: {class_path: LocalHead, init_args: {topk: 3}}}": "head: no argument topk; did you mean top_k?",
    "model: {head: {class_path: LocalHead, initargs: {top_k: 3}}}": "no argument initargs; did you mean init_args?",
    "model: {head: {class_path: 3}}": "--model.head: expected the name of a Head, or class_path and init_args; got",
    "model: {head: {class_path: LocalHead, init_args: 3}}": "--model.head: ovml.heads.LocalHead: cannot be taken as a",
    "model: {stages: [{class_path: VisionStage, init_args: {epoch: 1}}]}": "no argument epoch; did you mean epochs?",
    "model: {stages: 5}": "--model.stages: expected list or null; got '5'",
    "data: 5": "--data: expected the name of a MultiLabelDataModule, or class_path and init_args; got '5'",
    "data: {class_path: NoData}": "--data: no MultiLabelDataModule NoData; there are COCODataModule",
    "model: 5": "model holds '5'; expected its settings by name",
    "trainer: []": "trainer holds '[]'; expected its settings by name",
    "1: 2": "the key 1 is not text",
    "seed_everything: -1": "--seed_everything: must be from 0 to 4,294,967,295; got -1",
}


@pytest.mark.parametrize("content", IN_YAML)
def test_what_is_meant_in_yaml_is_named(content, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(content)
    arguments = ["fit", "--config", "demo.yaml", "--config", str(tmp_path / "my.yaml")]
    assert IN_YAML[content] in error_line(arguments, capsys)


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
NO_CONFIG = {
    "bomb": (BOMB.encode(), "not a YAML file (line 5: more than 20,000 values and keys"),
    "bomb in a known key": (b"model:\n  " + BOMB.encode().replace(b"\n", b"\n  "), "more than 20,000 values"),
    "recursion": (b"model: &a [*a]", "not a YAML file (line 1: *a has no anchor before it"),
    "5 MB of keys": (b"".join(b"k%d: 1\n" % i for i in range(500_000)), "larger than 1 MB"),
    "many keys": (b"".join(b"k%d: 1\n" % i for i in range(50_000)), "more than 20,000 values and keys"),
    "duplicate": (b"model: {head: LocalHead}\nmodel: {head: GlobalHead}", "(line 2: the key 'model' is given twice)"),
    "UTF-16": ("model: {head: LocalHead}".encode("utf-16"), "not UTF-8 text; save it as UTF-8"),
    "latin-1": ("# é\nmodel: {}".encode("latin-1"), "not UTF-8 text; save it as UTF-8"),
    "binary": (bytes(range(256)), "not UTF-8 text"),
    "NUL": (b"model:\0 {}", "has a NUL character"),
    "list": (b"- model", "no configuration; it holds keys such as model and data"),
    "empty": (b"", "no configuration"),
    "broken": (b"a: b: c", "not a YAML file (line 1: mapping values are not allowed"),
    "object": (
        b"model: !!python/object/apply:os.system [echo]",
        "could not determine a constructor",
    ),
}


@pytest.mark.parametrize("case", NO_CONFIG)
@pytest.mark.parametrize("place", ["--config", "run"])
def test_what_is_no_configuration_is_one_line(case, place, tmp_path, capsys):
    content, message = NO_CONFIG[case]
    (tmp_path / "config.yaml").write_bytes(content)
    given = ["--config", str(tmp_path / "config.yaml")] if place == "--config" else ["--ckpt_path", str(tmp_path)]
    line = error_line(["test", *given], capsys)
    assert message in line
    assert str(tmp_path / "config.yaml") in line


@pytest.mark.parametrize("option", ["--model", "--trainer", "--model.head", "--data"])
def test_every_yaml_that_is_loaded_is_checked(option, tmp_path, capsys):
    (tmp_path / "bomb.yaml").write_text(BOMB)
    error_line(["fit", "--config", "demo.yaml", option, str(tmp_path / "bomb.yaml")], capsys)


TRAINER = [
    *[(f"--trainer.{name}", value) for name in ("max_epochs", "max_steps") for value in ("-7", str(10**30))],
    *[("--trainer.gradient_clip_val", value) for value in ("-1", ".nan", ".inf", "x")],
    *[("--trainer.num_sanity_val_steps", value) for value in ("-7", str(10**19), "x")],
    *[("--trainer.devices", value) for value in ("-5", "0", "x", str(10**30), "[-3]")],
    *[("--trainer.limit_train_batches", value) for value in ("-1", ".nan")],
    *[("--trainer.accumulate_grad_batches", value) for value in ("0", "-1", "1.5")],
    *[("--seed_everything", value) for value in ("-1", str(2**32), str(10**30), "x", ".nan")],
    *[("--trainer.default_root_dir", value) for value in ("/dev/null", "/dev/null/runs", "x" * 5000)],
    *[("--trainer.max_time", "x"), ("--trainer.strategy", "x"), ("--trainer.accelerator", "x")],
]


@pytest.mark.parametrize(("option", "value"), TRAINER)
def test_settings_of_the_trainer_out_of_range_are_one_line(option, value, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", "demo.yaml", *SMALL]
    if option == "--trainer.accelerator":
        arguments = arguments[:-2]
    line = error_line([*arguments, option, value], capsys)
    assert option[2:].split(".")[-1] in line or line.startswith("trainer: ")
    assert list(tmp_path.iterdir()) == []


def commands_with_options():
    for name in COMMANDS:
        if not issubclass(type(command(name)), Training) and name != "prepare":
            yield name


@pytest.mark.parametrize("value", ["-1", "0", str(10**19), "9" * 5000, "nan", "inf", "x", "", "1e3", "1.5"])
def test_numbers_out_of_range_are_one_line_in_every_command(value):
    """Every option that takes a number, as the parsers declare it."""
    numbers = 0
    for name in commands_with_options():
        for action in command(name).parser()._actions:
            if not action.option_strings or action.type is None or not _takes_numbers(action.type):
                continue
            numbers += 1
            parser = command(name).parser()
            for other in parser._actions:  # what else must be given is of no interest here
                other.required = False
                other.nargs = "?" if not other.option_strings else other.nargs
            try:
                found = getattr(parser.parse_args([action.option_strings[0], value]), action.dest)
            except UserError as error:
                message = str(error)
                assert message.startswith(f"{action.option_strings[0]}: ")
                assert len(message.splitlines()) == 1
                assert len(message) < 250
            else:
                assert math.isfinite(found)
                assert isinstance(found, float) or 0 <= found < 2**31
                assert str(found) in (value, f"{float(value)}")
    assert numbers >= 8


def _takes_numbers(kind):
    try:
        return isinstance(kind("7"), (int, float))
    except Exception:
        return False


@pytest.mark.parametrize("value", ["-1", "0", "x", "1.5", ".nan"])
def test_numbers_of_prepare_are_checked(value, capsys):
    line = error_line(["prepare", next(iter(DATA_SETS)), "--workers", value], capsys)
    assert line.startswith(f"--workers: expected positive int or null; got '{value}'")


class Own(Command):
    def add_arguments(self, parser):
        parser.add_argument("--top-k", type=int)

    def run(self, args):
        pass


def test_own_commands_and_parsers_have_it_too():
    with pytest.raises(UserError, match="no option --top-q; did you mean --top-k.$"):
        Own("own", "do it")(["--top-q", "3"])
    assert jsonargparse.get_loader("yaml")("[a, {b: 1e-3}]") == ["a", {"b": 1e-3}]
    with pytest.raises(yaml.YAMLError):
        jsonargparse.get_loader("yaml")("{a: 1, a: 2}")
