"""What all commands share: spelling of options, flags in errors, checks before torch is imported."""

import subprocess
import sys

import pytest
from commands import SMALL, python_path
from PIL import Image

from ovml.cli.command import Command, with_flags
from ovml.cli.export import SUFFIXES as EXPORTED
from ovml.cli.main import COMMANDS, command, main
from ovml.cli.tag import SUFFIXES as TAGGED
from ovml.cli.tag import XMP_NAMES
from ovml.inference.export import FORMATS
from ovml.inference.tag_output import SUFFIXES
from ovml.inference.xmp import NAMES
from ovml.utils.errors import UserError

HEAVY = "torch", "lightning", "transformers", "datasets", "torchmetrics", "gradio"


def without_torch(*arguments):
    """Run the command in a process of its own, in which nothing heavy may be imported."""
    code = (
        "import sys\nfrom ovml.cli.main import main\ntry:\n    code = main(sys.argv[1:])\n"
        f"except SystemExit as stop:\n    code = stop.code\nloaded = sorted(set({HEAVY}) & set(sys.modules))\n"
        "sys.exit(f'imported: {loaded}' if loaded else code)"
    )
    environment = {"PYTHONPATH": python_path(), "COLUMNS": "80"}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


CHECKED = {
    "template": (["tag", "{image}", "--prompt", "nobrace"], "--prompt: template 'nobrace' must hold {} exactly once"),
    "missing image": (["tag", "none.png", "--labels", "a"], "none.png: no such file or folder"),
    "list of images": (["tag", "--images-file", "none.txt", "--labels", "a"], "none.txt: cannot be read"),
    "labels file": (["tag", "{image}", "--labels-file", "none.txt"], "none.txt: cannot read the label file"),
    "vocabulary": (["tag", "{image}", "--vocabulary", "every"], "--vocabulary: invalid choice: 'every'"),
    "labels": (["tag", "{image}", "--labels", "a,a"], "--labels: 'a' (name 2) is repeated"),
    "value": (["tag", "{image}", "--top-k", "0"], "--top-k: must be at least 1; got 0"),
    "model": (["tag", "{image}", "--labels", "a", "--model", "/no/run"], "--model: /no/run: no such checkpoint"),
    "checkpoint": (["fit", "--config", "demo.yaml", "--model.clip", "./no/clip"], "./no/clip: no such checkpoint"),
    "ending": (["tag", "{image}", "--labels", "a", "--out", "a.xls"], "let the name end in .jsonl, .csv, .parquet"),
    "output": (["tag", "{image}", "--labels", "a", "--out", "{there}.csv"], "exists already; give another name"),
    "embeddings": (["embed-labels", "--out", "a.npy"], "let the name end in .safetensors"),
    "names": (["embed-labels", "--labels-file", "none.txt"], "none.txt: cannot read the label file"),
    "figure": (["explain", "{image}", "--out", "a.jpg"], "let the name end in .png"),
    "explained image": (["explain", "none.png"], "none.png: no such file"),
    "font": (["explain", "{image}", "--font", "none.ttf"], "--font none.ttf: no such file"),
    "format": (["export", "--format", "tflite"], "--format 'tflite': unknown; it is one of onnx, torch.export"),
    "export": (["export", "--out", "{there}.onnx"], "exists already"),
    "opset": (["export", "--out", "a.pt2", "--opset", "18"], "--opset: only the format onnx has one"),
    "port": (["app", "--port", "70000"], "--port: must be from 0 to 65535; got 70000"),
    "stages": (["import-mkt", "--stage1", "a", "--stage2", "b", "--out", "c"], "--stage1 a: no such file"),
    "data set": (["prepare", "cifar"], "invalid choice: 'cifar'"),
    "configuration": (["fit", "--config", "none.yaml"], "--config none.yaml: no such file"),
    "second configuration": (["fit", "--config", "demo.yaml", "-c", "none.yaml"], "--config none.yaml: no such file"),
    "no YAML": (["fit", "--config={broken}"], "not a YAML file"),
    "no configuration": (["fit", "--config", "{list}"], "no configuration"),
    "run": (["test", "--ckpt_path", "/no/run"], "--ckpt_path /no/run: not a run"),
    "run to resume": (["fit", "--config", "demo.yaml", "--ckpt-path=/no/run"], "--ckpt_path /no/run: not a run"),
    "nothing": (["fit", "--trainer.max_epochs", "1"], "no data set: give --config FILE"),
    "command": (["train"], "no command 'train'"),
}


@pytest.mark.parametrize("case", CHECKED)
def test_bad_input_is_reported_before_torch_is_imported(case, picture, tmp_path):
    for suffix in ("csv", "onnx"):
        (tmp_path / f"there.{suffix}").write_text("")
    (tmp_path / "broken.yaml").write_text("model: [")
    (tmp_path / "list.yaml").write_text("- model")
    places = {
        "image": picture,
        "there": tmp_path / "there",
        "broken": tmp_path / "broken.yaml",
        "list": tmp_path / "list.yaml",
    }
    arguments, message = CHECKED[case]
    done = without_torch(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ovml: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["fit", "--config", "demo.yaml", "--plots"], "matplotlib"),
        (["export", "--out", "a.onnx"], "onnx"),
        (["app", "--labels", "a"], "gradio"),
    ],
)
def test_a_missing_extra_is_reported_first(arguments, package, monkeypatch, capsys):
    monkeypatch.setattr("ovml.cli.command.find_spec", lambda name: None)
    assert main(arguments) == 2
    assert f"{package} is not installed; pip install 'ovml[" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_needs_no_torch_and_fits_on_a_page(name):
    done = without_torch(*([name] if name else []), "--help")
    assert done.returncode == 0, done.stderr
    assert COMMANDS[name or "tag"][1].split()[-1] in done.stdout
    assert len(done.stdout.splitlines()) <= 60


def test_the_list_of_commands_imports_none_of_them():
    code = (
        "import sys; from ovml.cli.main import COMMANDS, main; main([]); "
        "sys.exit(str([p for p, _ in COMMANDS.values() if p.partition(':')[0] in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


class Echo(Command):
    def add_arguments(self, parser):
        parser.add_argument("words", nargs="*")
        parser.add_argument("--labels-file")
        parser.add_argument("--top-k", type=int, default=1)
        parser.add_argument("--overwrite", action="store_true")

    def run(self, args):
        if args.top_k < 1:
            raise UserError(f"top_k must be at least 1; got {args.top_k}")
        print(args.labels_file, args.words)


def test_both_spellings_of_an_option_are_accepted_and_values_stay(capsys):
    for option in ("--labels_file", "--labels-file"):
        Echo("echo", "print")([option, "my_own-labels.txt", "--", "a_b", "--c_d"])
        Echo("echo", "print")([f"{option}=my_own-labels.txt", "--", "a_b", "--c_d"])
    assert set(capsys.readouterr().out.splitlines()) == {"my_own-labels.txt ['a_b', '--c_d']"}


def test_errors_of_the_library_name_options():
    with pytest.raises(UserError, match="^--top-k must be at least 1; got 0$"):
        Echo("echo", "print")(["--top_k", "0"])
    with pytest.raises(UserError, match="^--top-k: invalid int value: 'x'; see 'ovml echo --help'$"):
        Echo("echo", "print")(["--top-k", "x"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("labels: the list is empty", "--labels: the list is empty"),
        ("a.txt: the labels are empty", "a.txt: the labels are empty"),
        ("data.resize 300: too large", "--data.resize 300: too large"),
        ("b.csv: exists; overwrite=True replaces it", "b.csv: exists; --overwrite replaces it"),
        ("c: missing (max_missing=0.26)", "c: missing (--data.max_missing 0.26)"),
        ("--labels 'a,b' is needed", "--labels 'a,b' is needed"),
        ("my_labels=3 stays", "my_labels=3 stays"),
    ],
)
def test_arguments_become_options(message, expected):
    flags = {"labels": "--labels", "overwrite": "--overwrite", "data.resize": "--data.resize"}
    assert with_flags(message, flags | {"max_missing": "--data.max_missing"}) == expected


def test_endings_are_those_of_the_library():
    assert SUFFIXES == TAGGED
    assert NAMES == XMP_NAMES
    assert FORMATS == EXPORTED


def test_a_command_is_a_class_and_a_line(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "echo", ("test_command:Echo", "print what follows"))
    assert main(["echo", "--labels_file", "a_b.txt", "word"]) == 0
    assert capsys.readouterr().out == "a_b.txt ['word']\n"
    assert main(["echo", "--top-k", "0"]) == 2
    assert capsys.readouterr().err == "ovml: error: --top-k must be at least 1; got 0\n"
    assert main(["--help"]) == 0
    assert "echo         print what follows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "a.csv"), "a.csv: No space left on device; make room"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (MemoryError(), "out of memory (MemoryError); take a smaller batch size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory (CUDA out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "DataLoader worker (pid 7) is killed"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "DataLoader worker (pid(s) 7, 8) exited"),
    ],
    ids=repr,
)
def test_what_is_the_machines_fault_is_one_line(capsys, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("ovml.cli.doctor.Doctor.run", fail)
    assert main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ovml: error: {message}")
    monkeypatch.setenv("OVML_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["doctor"])


def test_a_reader_that_has_seen_enough_is_no_error(capsys, monkeypatch):
    """As in `ovml tag ... | head -1`."""

    def closed(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ovml.cli.doctor.Doctor.run", closed)
    assert main(["doctor"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_reader_of_a_file_that_ends_is_an_error(capsys, monkeypatch):
    """As of `--out FIFO`: what was not written is lost."""

    def closed(*_):
        raise BrokenPipeError(32, "Broken pipe", "tags.csv")

    monkeypatch.setattr("ovml.cli.doctor.Doctor.run", closed)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("ovml: error: tags.csv: Broken pipe")


@pytest.mark.parametrize("name", ["results.json", ".lock"])
def test_a_folder_in_the_place_of_a_run_s_file_is_named(name, config, tmp_path, capsys):
    fit = ["fit", "--config", config, *SMALL, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path)]
    assert main(fit) == 0
    file = tmp_path / "version_0" / name
    file.unlink(missing_ok=True)
    file.mkdir()
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", str(file.parent)]) == 1
    assert capsys.readouterr().err.endswith(f"{name}: Is a directory; move it away\n")


def test_a_fault_of_ovml_is_not_hidden(monkeypatch):
    monkeypatch.setattr("ovml.cli.doctor.Doctor.run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_a_debugged_error_of_the_user_is_raised(monkeypatch):
    monkeypatch.setenv("OVML_DEBUG", "1")
    with pytest.raises(UserError, match="no command"):
        main(["train"])


@pytest.mark.parametrize(
    "labels", ["x" * 20_000, "red " * 10_000, "\x1b" * 20_000], ids=["one word", "words", "escapes"]
)
def test_an_error_about_a_name_of_any_length_is_short(labels, picture, capsys):
    assert main(["tag", str(picture), "--labels", labels]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert len(line) < 1020
    assert line.startswith("ovml: error: label too long: 'There is a ")
    assert line.endswith("shorten it")


def test_a_large_image_is_tagged_without_a_warning_of_pillow(picture, recwarn, monkeypatch):
    Image.new("RGB", (100, 100)).save(picture)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9900)  # of 10,000
    assert main(["tag", str(picture), "--labels", "moon,fish"]) == 0
    assert not any("exceeds limit" in str(warning.message) for warning in recwarn)


SYNONYMS = {
    **dict.fromkeys(["--checkpoint", "--ckpt", "--run", "--clip-model", "--weights"], "--model"),
    **dict.fromkeys(["--names", "--classes", "--label", "--tags"], "--labels"),
    **dict.fromkeys(["--names-file", "--label-file", "--labels-from"], "--labels-file"),
    **dict.fromkeys(["--output", "--out-file", "--out-dir", "--save", "--to"], "--out"),
    **dict.fromkeys(["--force", "--replace"], "--overwrite"),
    **dict.fromkeys(["--topk", "--num-labels", "--max-tags"], "--top-k"),
    **dict.fromkeys(["--workers", "--threads", "--batch", "--template", "--templates", "--cuda", "--gpu"], "another"),
}
LIGHTNING = ("fit", "validate", "test", "predict")


def actions():
    """Options and positional arguments of every command but Lightning's, which are named after constructors."""
    for name in COMMANDS:
        if name not in LIGHTNING:
            for action in command(name).parser()._actions:
                yield name, action


def test_equal_options_have_equal_names_in_all_commands():
    kinds, names = {}, {}
    for name, action in actions():
        assert not SYNONYMS.keys() & set(action.option_strings), f"{name}: {action.option_strings}"
        kind = type(action).__name__, getattr(action.type, "__qualname__", None), action.nargs
        for option in action.option_strings:
            kinds.setdefault(option, {})[kind] = name
        if action.help and action.option_strings:
            names.setdefault(action.help, set()).add(action.option_strings[-1])
    assert {option: found for option, found in kinds.items() if len(found) > 1} == {}
    assert {help: found for help, found in names.items() if len(found) > 1} == {}


def test_every_command_that_scores_labels_takes_them_alike():
    options = {}
    for name, action in actions():
        options.setdefault(name, set()).update(action.option_strings)
    for name, found in options.items():
        if "--model" in found:
            assert {"--labels", "--labels-file", "--vocabulary", "--prompt"} <= found, name
        assert ("--labels" in found) == ("--model" in found), name
