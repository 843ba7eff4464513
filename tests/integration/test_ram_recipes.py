"""RAM's recipes, run through the command line on tiny trees in the real layouts."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from data import fake_json, fake_nuswide

from ovml import OVMultiLabelClassifier
from ovml.cli.main import main
from ovml.utils.resources import config_path


def nuswide(root):
    truth = fake_nuswide.make_truth()
    fake_nuswide.write_official(root, truth)
    fake_nuswide.write_pictures(root, truth)
    return []


def coco(root):
    fake_json.write_tree(root)
    names = {"train": "train_48", "zsl": "test_17_filtered", "gzsl": "test_65_filtered"}
    for name, published in names.items():
        content = json.loads((root / f"{name}.json").read_text())
        content["images"] = [[f"/mnt/nas/TrueNas1/tanhao/COCO/{path}", labels] for path, labels in content["images"]]
        (root / f"{published}.json").write_text(json.dumps(content))
        (root / f"{name}.json").unlink()
    return []


RECIPES = {"ram": nuswide, "ram_coco": coco}


@pytest.mark.parametrize("name", RECIPES)
def test_fit_then_test(name, tmp_path, tiny, capsys):
    root = tmp_path / "set"
    root.mkdir()
    RECIPES[name](root)
    small = ["--data.root", str(root), "--data.cache_dir", str(root / "cache"), "--data.num_workers", "0"]
    small += ["--data.batch_size", "4", "--model.clip", tiny, "--model.prompt.num_layers", "2", "--model.ks", "[1, 2]"]
    small += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "3", "--trainer.enable_progress_bar", "false"]
    small += ["--trainer.default_root_dir", str(tmp_path / "runs")]
    assert main(["fit", "--config", f"{name}.yaml", *small]) == 0
    run = tmp_path / "runs" / "version_0"
    rows = json.loads((run / "results.json").read_text())
    assert set(rows) == {"zero-shot", "ram"}
    assert {"zsl/mAP", "gzsl/mAP", "zsl/F1@1", "gzsl/F1@2"} <= set(rows["ram"])
    checkpoint = torch.load(run / "ram" / "last.ckpt", weights_only=True)
    (average,) = [state for name, state in checkpoint["callbacks"].items() if "LearnedEMA" in name]
    weights, averaged = average["weights"], checkpoint["state_dict"]
    moved = {name for name in weights if not torch.equal(weights[name], averaged[name])}
    assert moved >= {"model.head.tau_local", "model.prompt.tokens"}
    assert any(name.endswith("running_var") for name in moved)
    assert "model.head.tau_global" not in moved
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run), "--trainer.enable_progress_bar", "false"]) == 0
    assert "ram" in capsys.readouterr().out
    processor = OVMultiLabelClassifier.from_pretrained(run).model.image_processor
    assert (processor.squash, processor.resample, processor.mean, processor.std) == (True, 2, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_are_the_published_ones(name, ram_json):
    recipe = yaml.safe_load(Path(config_path(f"{name}.yaml")).read_text())
    published = ram_json["config"]["coco" if name == "ram_coco" else "nus"]
    model, data = recipe["model"], recipe["data"]["init_args"]
    (stage,), head, prompt = (
        [part["init_args"] for part in model["stages"]], model["head"]["init_args"], model["prompt"]["init_args"],
    )  # fmt: skip
    (average,) = [callback["init_args"] for callback in recipe["trainer"]["callbacks"]]
    assert model["clip"] == "openai/clip-vit-base-patch16"
    assert head == {
        "local_temperature": published["TEMPERATURE"], "epsilon": published["OT_REG"],
        "knowledge": published["OT_REGSC"],
    }  # fmt: skip
    assert prompt["num_layers"] == len(published["DEPTH_TEXT"])
    assert prompt["num_tokens"] == published["TEXT_CTX"]
    assert stage["num_layers"] == len(published["DEPTH_VISION"])
    assert stage["num_tokens"] == published["VISION_ADAPT"]
    assert stage["epochs"] == published["MAX_EPOCHS"]
    assert stage["schedule_epochs"] == published["SCHEDULER_MAX_EPOCHS"]
    assert stage["warmup_epochs"] == published["WARMUP_EPOCHS"]
    assert stage["temperature_lr"] == published["BASE_LR"] == 10 * stage["lr"]
    assert stage["token_lr"] == published["BASE_LR_SGD"]
    assert stage["momentum"] == published["MOMENTUM"]
    assert stage["weight_decay"] == published["WEIGHT_DECAY"] == published["WEIGHT_DECAY_SGD"]
    assert average == {"decay": published["EMA_DECAY"], "each_epoch": True, "copied": ["model.head.tau_global"]}
    assert recipe["trainer"]["check_val_every_n_epoch"] == published["EVAL_PERIOD"]
    assert recipe["seed_everything"] == published["SEED"]
    assert data["batch_size"] == published["IMS_PER_BATCH"]
    assert (data["reshuffle"], data["drop_last"], data["eval_batch_size"]) == (False, True, 512)
    assert (model["images"], model["ks"], model["distillation_weight"]) == ("labelled", [3, 5], 0)
