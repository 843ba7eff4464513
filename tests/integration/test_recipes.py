"""The packaged recipes, run through the command line on tiny trees in the real layouts."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from commands import SMALL
from conftest import SHARED
from data import fake_divided, fake_json, fake_nuswide, fake_openimages
from PIL import Image

from ovml.cli.main import main
from ovml.encoders.image_processor import IMAGENET_MEAN, IMAGENET_STD
from ovml.utils.resources import config_path

ROOT = Path(__file__).parents[2]


def nuswide(root):
    truth = fake_nuswide.make_truth()
    fake_nuswide.write_official(root, truth)
    fake_nuswide.write_pictures(root, truth)
    return []


def nuswide_h5(root):
    pytest.importorskip("h5py")
    truth = fake_nuswide.make_truth()
    fake_nuswide.write_h5(root, truth)
    fake_nuswide.write_pictures(root, truth)
    return []


def openimages(root):
    fake_openimages.write(root, image_lists=True)
    return ["--num_unseen", "3"]


def json_files(root):
    fake_json.write_tree(root)
    return ["--train_file", "train.json", "--zsl_file", "zsl.json", "--gzsl_file", "gzsl.json"]


def divided(write, *arguments):
    def tree(root):
        if write in (fake_divided.write_pa100k, fake_divided.write_rap):
            pytest.importorskip("scipy", reason="files of MATLAB need scipy")
        write(root)
        return list(arguments)

    return tree


DIVIDED = {
    name: divided(getattr(fake_divided, f"write_{name}"), "--unseen", "5")
    for name in ("coco", "multiscene", "mlrsnet", "pa100k", "rap")
}
RECIPES = {"nuswide": nuswide, "nuswide-h5": nuswide_h5, "openimages": openimages, "json": json_files, **DIVIDED}


def options(arguments, prefix="--data."):
    return [a.replace("--", prefix) if a.startswith("--") else a for a in arguments]


def fit(name, root, tiny, out, *arguments):
    small = ["--data.root", str(root), "--data.cache_dir", str(root / "cache"), "--data.num_workers", "0"]
    small += ["--model.clip", tiny, "--model.head.top_k", "3", "--model.ks", "[1, 2]"]
    small += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(out)]
    small += ["--trainer.enable_progress_bar", "false"]
    return main(["fit", "--config", f"{name}.yaml", *small, *arguments])


@pytest.mark.parametrize("recipe", RECIPES)
def test_prepare_then_fit(recipe, tmp_path, tiny, capsys):
    root = tmp_path / "set"
    root.mkdir()
    arguments = RECIPES[recipe](root)
    name = recipe.partition("-")[0]
    cache = ["--cache_dir", str(root / "cache")]
    assert main(["prepare", name, "--root", str(root), *cache, *arguments]) == 0
    printed = capsys.readouterr().out
    for text in ("listed", "missing", "unreadable", "labels: ", "positives per seen label in train"):
        assert text in printed
    assert fit(name, root, tiny, tmp_path / "runs", *options(arguments)) == 0
    run = tmp_path / "runs" / "version_0"
    rows = json.loads((run / "results.json").read_text())
    assert set(rows) == {"zero-shot", "vision", "prompt"}
    for metrics in rows.values():
        assert {"zsl/mAP", "gzsl/mAP", "zsl/F1@1", "gzsl/F1@2"} <= set(metrics)
    assert main(["test", "--ckpt_path", str(run), "--trainer.enable_progress_bar", "false"]) == 0


def test_a_closed_set_is_prepared_and_trained(tmp_path, tiny, capsys):
    root = tmp_path / "VOC2007"
    fake_divided.write_voc(root)
    assert main(["prepare", "voc", "--root", str(root), "--cache-dir", str(root / "cache")]) == 0
    assert "labels: 20 (20 seen, 0 unseen)" in capsys.readouterr().out
    assert fit("voc", root, tiny, tmp_path / "runs") == 0
    rows = json.loads((tmp_path / "runs" / "version_0" / "results.json").read_text())
    assert all("seen/mAP" in metrics and "zsl/mAP" not in metrics for metrics in rows.values())


@pytest.mark.parametrize("name", ["nuswide", "openimages", "json", *DIVIDED, "voc"])
def test_recipes_are_the_paper_s(name):
    recipe = yaml.safe_load((ROOT / "src" / "ovml" / "resources" / "configs" / f"{name}.yaml").read_text())
    vision, prompt = (stage["init_args"] for stage in recipe["model"]["stages"])
    assert recipe["model"]["clip"] == "openai/clip-vit-base-patch16"
    assert recipe["model"]["head"]["init_args"] == {"top_k": 16}
    assert recipe["model"]["distillation_weight"] == 1
    paper = {"epochs": 20, "lr": 1e-3, "min_lr": 1e-6, "warmup_epochs": 2, "weight_decay": 0.05, "layer_decay": 0.65}
    batches = ({"batch_size": 64}, {"batch_size": 512, "precision": "16-mixed"}) if name == "nuswide" else ({}, {})
    assert vision == {**paper, "num_layers": 2, **batches[0]}
    assert prompt == {"epochs": 4, "lr": 1e-3, "min_lr": 1e-8, "weight_decay": 0.05, **batches[1]}
    data = recipe["data"]["init_args"]
    assert data["batch_size"] == 64
    imagenet = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    assert recipe["model"]["preprocessing"] == {"resize": 256, **imagenet, "round_crop": True}
    assert data["rand_augment"]["init_args"] == {"num_ops": 2, "magnitude": 9, "std": 0.5}
    assert recipe["model"]["ks"] == ([10, 20] if name == "openimages" else [3, 5])


SMALLER = {"qks": {"num_queries": 2, "num_layers": 1, "width": 12, "num_heads": 2, "hidden_dim": 8}}


@pytest.mark.parametrize(("name", "stage"), [("dualcoop", "coop"), ("dualcoop_coco", "coop"), ("qks", "head")])
def test_recipes_of_one_stage_are_parsed_as_written_and_train(name, stage, tmp_path, tiny, capsys):
    recipe = yaml.safe_load(Path(config_path(f"{name}.yaml")).read_text())
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", f"{name}.yaml", "--data.root", "here", "--print_config"])
    assert done.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for part in ("head", "prompt", "loss"):
        assert recipe["model"][part]["init_args"].items() <= printed["model"][part]["init_args"].items()
    assert recipe["data"]["init_args"].keys() <= printed["data"]["init_args"].keys()
    assert printed["model"]["images"] == "labelled"

    root = tmp_path / "set"
    root.mkdir()
    (fake_divided.write_coco if name.endswith("coco") else nuswide)(root)
    recipe["model"]["head"]["init_args"] |= SMALLER.get(name, {})
    recipe["model"]["clip"] = tiny
    if "num_context" in recipe["model"]["prompt"]["init_args"]:
        recipe["model"]["prompt"]["init_args"]["num_context"] = 8  # the tower's tokens are letters
    recipe["data"]["init_args"] |= {"root": str(root), "cache_dir": str(root / "cache"), "num_workers": 0}
    recipe["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(tmp_path / "runs")}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["fit", "--config", str(tmp_path / "small.yaml"), "--trainer.enable_progress_bar", "false"]
    assert main([*arguments, "--model.ks", "[1]"]) == 0
    run = tmp_path / "runs" / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", stage}
    assert main(["test", "--ckpt_path", str(run), "--trainer.enable_progress_bar", "false"]) == 0


def test_prepare_names_labels_of_the_same_images(tmp_path, capsys):
    pairs = [[f"{i}.png", ["cat", "kitten"] + ["dog"] * (i % 2)] for i in range(12)]
    for i in range(12):
        fake_divided.picture(tmp_path / f"{i}.png", i)
    content = {"classes": ["cat", "kitten", "dog"], "images": pairs}
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "test.json").write_text(json.dumps({**content, "images": pairs[:9]}))
    files = ["--train-file", "train.json", "--gzsl-file", "test.json", "--cache-dir", str(tmp_path / "cache")]
    assert main(["prepare", "json", "--root", str(tmp_path), *files]) == 0
    printed = capsys.readouterr().out
    assert "train: 'cat' and 'kitten' are present in the same 12 images" in printed
    assert "test: 'cat'" not in printed  # too few to tell


def test_prepare_names_the_labels_of_one_column_in_the_published_list_of_rap(tmp_path, capsys):
    listed = SHARED / "benchmark_files" / "ram_json" / "RAP" / "test.json"
    if not listed.is_file():
        pytest.skip(f"the published list is not here: {listed}")
    files = ["--train-file", str(listed), "--gzsl-file", str(listed), "--verify", "none", "--max-missing", "1"]
    files += ["--strip-prefix", "/mnt/nas/TrueNas1/tanhao/PAR/RAP", "--cache-dir", str(tmp_path / "cache")]
    assert main(["prepare", "json", "--root", str(tmp_path), *files]) == 0
    assert "'Skirt' and 'Short Skirt' and 'Dress' are present in the same 545 images" in capsys.readouterr().out


def test_nuswide_with_its_real_labels(tmp_path, tiny, capsys):
    if not SHARED.is_dir():
        pytest.skip(f"the real label lists are not here: {SHARED}")
    truth = fake_nuswide.make_truth()
    tags, concepts = (
        (SHARED / "data" / f"nuswide_{name}.txt").read_text().split("\n")[:size]
        for name, size in (("tags1k", 1000), ("unseen81", 81))
    )
    truth.tags = {image: {tags[(7 * i + j) % 1000] for j in range(9)} for i, image in enumerate(truth.tags)}
    truth.concepts = {image: {concepts[(5 * i + j) % 81] for j in range(4)} for i, image in enumerate(truth.concepts)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_nuswide, "TAGS", tuple(tags))
        patch.setattr(fake_nuswide, "CONCEPTS", tuple(concepts))
        fake_nuswide.write_official(tmp_path, truth)
    fake_nuswide.write_pictures(tmp_path, truth)
    assert main(["prepare", "nuswide", "--root", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]) == 0
    assert "labels: 1,006 (925 seen, 81 unseen)" in capsys.readouterr().out
    assert fit("nuswide", tmp_path, tiny, tmp_path / "runs", "--model.ks", "[3, 5]") == 0


def test_prepare_counts_what_is_lost_and_fit_leaves_it_out(tmp_path, tiny, capsys):
    truth = fake_nuswide.make_truth(train=12, test=8)
    fake_nuswide.write_official(tmp_path, truth)
    fake_nuswide.write_pictures(tmp_path, truth)
    missing, small, broken = truth.images["train"][:3]
    pictures = tmp_path / "Flickr"
    (pictures / missing).unlink()
    (pictures / small).write_bytes(b"x" * 4000)
    (pictures / broken).write_bytes((pictures / broken).read_bytes()[:-1000])
    arguments = ["prepare", "nuswide", "--root", str(tmp_path), "--cache_dir", str(tmp_path / "cache")]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert re.search(r"train.*│ +12 │ +10 │ +2 │ +1 │", output.out)
    assert re.search(r"test.*│ +8 │ +8 │ +0 │ +0 │", output.out)
    assert "3 of the 12 images of the train split (25.0%) are missing or unreadable" in output.err
    assert "--max-missing 0.26" in output.err
    assert fit("nuswide", tmp_path, tiny, tmp_path / "runs") == 2
    assert "--data.max_missing 0.26" in capsys.readouterr().err
    assert main([*arguments, "--max_missing", "0.3", "--out", str(tmp_path / "lists")]) == 0
    lost = (tmp_path / "lists" / "lost-train.txt").read_text().split()
    assert lost == [str(pictures / name) for name in (missing, small, broken)]
    table = (tmp_path / "lists" / "labels.csv").read_text().splitlines()
    assert table[0] == "label,train,test"
    naive = {label: [0, 0] for label in fake_nuswide.VOCABULARY}
    for column, split in enumerate(("train", "test")):
        for image in truth.images[split]:
            for label in truth.positive(image):
                naive[fake_nuswide.VOCABULARY[label]][column] += 1
    assert table[1:] == [f"{label},{train},{test}" for label, (train, test) in naive.items()]
    capsys.readouterr()
    assert fit("nuswide", tmp_path, tiny, tmp_path / "runs", "--data.max_missing", "0.3") == 0
    assert main([*arguments, "--max_missing", "0.3", "--verify", "none"]) == 0
    assert "not checked" in capsys.readouterr().out


BAD = {
    "no data set": (["prepare"], "data_set"),
    "no such data set": (["prepare", "coco", "--root", "x"], "coco"),
    "no root": (["prepare", "nuswide"], "root"),
    "no such root": (["prepare", "nuswide", "--root", "/no/folder"], r"/no/folder: no such folder"),
    "unknown option": (["prepare", "json", "--root", "x", "--train_file", "a", "--colour", "red"], "colour"),
    "fit without root": (["fit", "--config", "nuswide.yaml"], "root"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line(case, capsys):
    arguments, message = BAD[case]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


def test_the_data_set_of_the_docs_works(tmp_path, tiny, monkeypatch):
    text = (ROOT / "docs" / "data" / "index.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "images").mkdir()
    for split in ("train", "test"):
        for i in range(4):
            Image.new("RGB", (30, 20), (60 * i, 9, 9)).save(tmp_path / "images" / f"{split}{i}.jpg")
        lines = [f"{split}{i}.jpg,{'sea;sand' if i % 2 else 'palm;sea'}" for i in range(4)]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (config,) = re.findall(r"```yaml\n(data:.*?)```", text, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(config)
    arguments = ["--config", str(tmp_path / "mine.yaml"), "--data.root", str(tmp_path), "--model.clip", tiny]
    arguments += ["--data.cache_dir", str(tmp_path / "cache"), "--trainer.max_epochs", "1", "--model.ks", "[1]"]
    arguments += ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.accelerator", "cpu"]
    assert main(["fit", *arguments]) == 0
    rows = json.loads((tmp_path / "runs" / "version_0" / "results.json").read_text())
    assert set(rows["prompt"]) >= {"zsl/mAP", "gzsl/F1@1"}


def test_best_is_the_demo_with_a_ladder_and_another_loss(tmp_path):
    recipe, demo = (yaml.safe_load(Path(config_path(name)).read_text()) for name in ("best.yaml", "demo.yaml"))
    for part in ("loss", "distillation_weight"):
        assert recipe["model"].pop(part) != demo["model"].pop(part)
    assert recipe["model"]["stages"].pop(0) != demo["model"]["stages"].pop(0)
    assert recipe["trainer"].pop("default_root_dir") != demo["trainer"].pop("default_root_dir")
    assert recipe == demo
    small = [*SMALL, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path)]
    small += ["--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", "best.yaml", *small]) == 0
    learned = torch.load(tmp_path / "version_0" / "ladder" / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in learned} >= {"model", "objective"}
    assert all(".local_adapter." in name for name in learned if name.startswith("model.image_encoder."))
