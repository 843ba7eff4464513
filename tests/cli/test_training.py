"""`ovml fit|validate|test|predict`: one page of help, bare class names, both spellings."""

import inspect

import pytest
import yaml
from commands import SMALL

from ovml.cli.lightning import OVMLCLI
from ovml.cli.main import command, main
from ovml.cli.training import FIT_OPTIONS, OPTIONS
from ovml.data import MultiLabelDataModule, NUSWIDEDataModule

NAMES = ("fit", "validate", "test", "predict")


@pytest.fixture(scope="module")
def real_options():
    """Options of LightningCLI's parser of each command."""

    class Stop(Exception):
        pass

    class Parsers(OVMLCLI):
        def parse_arguments(self, *_, **__):
            raise Stop(self._subcommand_parsers)

    with pytest.raises(Stop) as stopped:
        Parsers([])
    return {name: set(parser._option_string_actions) for name, parser in stopped.value.args[0].items()}


@pytest.mark.parametrize("name", NAMES)
def test_help_lists_options_that_exist_and_examples(name, real_options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    data = {f"--data.{argument}" for cls in (MultiLabelDataModule, NUSWIDEDataModule)
            for argument in inspect.signature(cls).parameters}  # fmt: skip
    shown = [option for option in OPTIONS | FIT_OPTIONS if f"{option} " in page]
    assert len(shown) >= (20 if name == "fit" else 15)
    assert set(shown) <= real_options[name] | data
    assert all(f"  {example}\n" in page for example in command(name).examples)


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_the_help_parse(name):
    for example in command(name).examples:
        program, own, *arguments = example.split()
        assert (program, own) == ("ovml", name)
        parser = command(name).parser()
        args, rest = parser.parse_known_args(arguments)
        assert args.config or args.ckpt_path
        assert all(word.startswith("--model.head.") or not word.startswith("--") for word in rest)


def test_help_all_is_lightnings_whole_help(capsys):
    for option in ("--help-all", "--help_all"):
        with pytest.raises(SystemExit):
            main(["fit", option])
        assert "--trainer.accumulate_grad_batches" in capsys.readouterr().out


BARE = {
    "part": (["--model.head", "LocalHead", "--model.head.top_k", "2"], "model.head", "ovml.heads.LocalHead"),
    "loss": (["--model.loss", "ZLPRLoss"], "model.loss", "ovml.losses.ZLPRLoss"),
    "prompt": (["--model.prompt", "CoOpPrompt"], "model.prompt", "ovml.prompts.CoOpPrompt"),
    "distillation": (
        ["--model.distillation", "CosineDistillation"],
        "model.distillation",
        "ovml.distillation.CosineDistillation",
    ),
    "stages": (["--model.stages", "[PromptStage, LadderStage]"], "model.stages.1", "ovml.training.LadderStage"),
    "protocol": (["--model.protocols+", "NewWords"], "model.protocols.0", "ovml.metrics.NewWords"),
    "data": (["--data", "HubDataModule", "--data.path", "x"], "data", "ovml.data.HubDataModule"),
    "callback": (
        ["--trainer.callbacks+", "LearnedEMA", "--trainer.callbacks.decay", "0.9"],
        "trainer.callbacks.0",
        "ovml.training.callbacks.LearnedEMA",
    ),
    "augmentation": (["--data.rand_augment", "RandAugment"], "data.init_args.rand_augment", "ovml.data.RandAugment"),
}


def printed(capsys, *arguments):
    """The configuration that `--print_config` prints."""
    with pytest.raises(SystemExit):
        main(["fit", *arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("case", BARE)
def test_bare_names_on_the_command_line_are_classes_of_ovml(case, capsys):
    arguments, place, class_path = BARE[case]
    found = printed(capsys, "--config", "demo.yaml", *arguments)
    for key in place.split("."):
        found = found[int(key) if key.isdecimal() else key]
    assert found["class_path"] == class_path


def test_bare_names_in_yaml_are_classes_of_ovml(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(
        "model:\n  head: LocalHead\n  prompt: {class_path: ContextPrompt, init_args: {template: 'a {}'}}\n"
        "  stages: [VisionStage, PromptStage]\ndata: {class_path: DemoDataModule}\n"
        "trainer: {callbacks: [{class_path: LearnedEMA, init_args: {decay: 0.9}}]}\n"
    )
    found = printed(capsys, "--config", str(tmp_path / "my.yaml"))
    assert found["model"]["head"]["class_path"] == "ovml.heads.LocalHead"
    assert found["model"]["prompt"]["init_args"]["template"] == "a {}"
    assert found["data"]["class_path"] == "ovml.data.DemoDataModule"
    assert [stage["class_path"].split(".")[-1] for stage in found["model"]["stages"]] == ["VisionStage", "PromptStage"]
    assert found["trainer"]["callbacks"][0]["class_path"] == "ovml.training.callbacks.LearnedEMA"


def test_names_with_dashes_and_bare_names_train(config, tmp_path):
    arguments = [
        "--trainer.max-epochs=1",
        "--trainer.default-root-dir",
        str(tmp_path),
        "--model.stages",
        "[PromptStage]",
    ]
    assert main(["fit", "--config", config, *SMALL, *arguments, "--model.head", "LocalHead"]) == 0
    saved = yaml.safe_load((tmp_path / "version_0" / "config.yaml").read_text())
    assert saved["model"]["head"]["class_path"] == "ovml.heads.LocalHead"
    assert saved["trainer"]["max_epochs"] == 1
    assert main(["validate", "--ckpt-path", str(tmp_path / "version_0"), *SMALL]) == 0


def test_errors_of_data_modules_name_options(tmp_path, capsys):
    arguments = ["--model.preprocessing.resize", "8", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--config", "demo.yaml", *arguments]) == 2
    assert "ovml: error: --model.preprocessing.resize 8: " in capsys.readouterr().err
