"""Every example runs as its first lines say."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from ovml import LabelVocabulary, OVMultiLabelClassifier, Tagger
from ovml.cli.main import main
from ovml.data.synthetic.scenes import LABELS, draw_scene
from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import checkpoint_path, load_clip, load_tokenizer
from ovml.inference.tag_output import Written
from ovml.prompts import TemplatePrompt

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder; returns what it prints."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def own(monkeypatch):
    """The examples' folder as a place to import from."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_every_example_is_run():
    tests = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    forgotten = [path.name for path in EXAMPLES.iterdir() if path.suffix != ".md" and f'"{path.name}"' not in tests]
    assert [name for name in forgotten if name != "__pycache__"] == []


def test_zero_shot_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "zero_shot.py")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert sorted(label for _, label in lines) == ["blue star", "heart", "moon", "red circle"]
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    assert -1 <= min(scores) < max(scores) <= 1


@pytest.mark.parametrize("name", ["own_head.py", "own_loss.py", "own_prompt.py", "own_stage.py"])
def test_parts_of_ones_own_train(run, name):
    found = ast.literal_eval(run(name).splitlines()[-1])
    assert {"val/zsl/mAP", "val/gzsl/mAP", "val/seen/mAP"} <= set(found)
    assert all(0 < value < 1 for value in found.values())


def test_own_loss_is_the_mean_over_known_marks(own):
    from own_loss import KnownBinaryCrossEntropy

    torch.manual_seed(0)
    logits, targets = torch.randn(4, 6, dtype=torch.float64), torch.randint(-1, 2, (4, 6))
    targets[3] = -1
    images = []
    for row, marks in zip(logits.tolist(), targets.tolist(), strict=True):
        chances = [torch.sigmoid(torch.tensor(3.0 * score - 1.0)).item() for score in row]
        known = [chance if mark else 1 - chance for chance, mark in zip(chances, marks, strict=True) if mark != -1]
        images.append(-sum(torch.tensor(known).log().tolist()) / len(known) if known else 0.0)
    loss = KnownBinaryCrossEntropy(scale=3.0, bias=-1.0)
    assert loss(logits, targets).item() == pytest.approx(sum(images) / 4, rel=1e-5)
    hidden = logits.clone()
    hidden[targets == -1] += 5
    assert loss(hidden, targets).item() == loss(logits, targets).item()


def test_own_prompt_begins_as_its_words_and_learns(own):
    from own_prompt import PrefixPrompt

    tower = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
    names = ["star", "striped red circle", "zebra"]
    prompt = PrefixPrompt("there is a").bind(tower)
    assert prompt.context.shape[0] == 3
    torch.testing.assert_close(prompt(names), TemplatePrompt("there is a {}").bind(tower)(names), atol=1e-4, rtol=1e-4)
    prompt(names).square().sum().backward()
    assert prompt.context.grad.norm(dim=1).min() > 0


def test_own_stage_trains_vectors_of_the_last_blocks_alone(own):
    from own_stage import BiasStage

    model = OVMultiLabelClassifier("ovml-demo", ["star", "moon"], stages=[BiasStage(num_layers=2)])
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    depth = len(model.model.image_encoder.vision_model.encoder.layers)
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in learning} == {depth - 2, depth - 1}
    assert all(name.endswith(".bias") or "norm" in name for name in learning)
    assert any("norm" in name for name in learning)


def test_own_protocol_scores_the_labels_with_a_word(run, own):
    from own_protocol import LabelsWith

    vocabulary = LabelVocabulary(("star", "moon", "starfish"), ("red star",))
    assert list(LabelsWith("star").columns(vocabulary)) == [0, 3]
    said = run("own_protocol.py")
    assert "labels: ['star', " in said
    found = ast.literal_eval(said.splitlines()[-1])
    assert {"val/zsl/mAP", "val/with_star/mAP"} <= set(found)


def test_own_dataset_gives_batches(run):
    said = run("own_dataset.py")
    assert "128 images for training" in said
    assert "{'pixel_values': [8, 3, 96, 96], 'labels': [8, " in said


def test_own_dataset_marks_what_the_file_lists(own, tmp_path):
    from own_dataset import CSVDataModule, draw_folder

    folder = draw_folder(10)
    data = CSVDataModule(str(folder), unseen=["moon"], clip="ovml-demo", cache_dir=str(tmp_path))
    names = data.vocabulary.names
    assert data.vocabulary.unseen == ("moon",)
    test = data.dataset("test")
    assert list(test["image_id"]) == ["004.png", "009.png"]
    drawn = [{LABELS[i] for i in draw_scene(0, "train", row).label_ids} for row in (4, 9)]
    assert [{names[i] for i in labels} for labels in test["positive"]] == drawn
    assert len(data.dataset("train")) == 8


def test_finetune_on_csv_compares_and_saves(run, tmp_path):
    said = run("finetune_on_csv.py", "--epochs", "1", "--out", tmp_path / "model")
    rows = {line.split()[0]: numbers(line) for line in said.splitlines() if line.startswith("test/")}
    assert {"test/zsl/mAP", "test/gzsl/mAP", "test/gzsl/F1@3"} <= set(rows)
    assert all(len(values) == 2 and 0 <= min(values) <= max(values) <= 1 for values in rows.values())
    model = OVMultiLabelClassifier.from_pretrained(tmp_path / "model")
    assert model.model.vocabulary.unseen == ("heart", "red circle", "striped star")


def test_evaluate_clip_equals_scikit_learn(run, tmp_path, own):
    from evaluate_clip import TEMPLATES, drawn_pictures, evaluate

    said = run("evaluate_clip.py")
    assert [line.split()[0] for line in said.splitlines()] == ["mAP", "P@1", "R@1", "F1@1", "P@3", "R@3", "F1@3"]
    assert all(0 < value < 100 for value in numbers(said))

    pictures, present = drawn_pictures(12)
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["image,labels"]
    for i, (picture, names) in enumerate(zip(pictures, present, strict=True)):
        picture.save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'; '.join(names)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    from_files = numbers(run("evaluate_clip.py", folder, tmp_path / "labels.csv", "ovml-demo"))
    found = evaluate("ovml-demo", pictures, present)
    assert from_files == pytest.approx([100 * float(value) for value in found.values()], abs=0.06)

    labels = sorted(set().union(*present))
    clip, tokenizer = load_clip("ovml-demo"), load_tokenizer("ovml-demo")
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint_path("ovml-demo"))
    texts = 0
    with torch.inference_mode():
        images = clip.get_image_features(processor(pictures, return_tensors="pt")["pixel_values"]).pooler_output
        for template in TEMPLATES:
            tokens = tokenizer([template.format(label) for label in labels], padding=True, return_tensors="pt")
            texts = texts + clip.get_text_features(**tokens).pooler_output
    scores = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).numpy()
    truth = [[label in names for label in labels] for names in present]
    assert float(found["mAP"]) == pytest.approx(average_precision_score(truth, scores, average="macro"), abs=1e-4)


def test_photo_search_indexes_once_and_ranks(run, tmp_path):
    first = run("photo_search.py", "--best", "5")
    assert first.startswith("photo_index.parquet: 60 images (0 before), 0 could not be read")
    rows = pq.read_table(tmp_path / "photo_index.parquet").to_pylist()
    tags = {"star", "red circle", "moon"}
    found = sorted(
        ((tag["label"], tag["score"], row["image"]) for row in rows for tag in row["labels"] if tag["label"] in tags),
        key=lambda tag: (tag[0], -tag[1]),
    )
    expected = {label: [tag for tag in found if tag[0] == label][:5] for label in tags}
    for label, best in expected.items():
        block = first.split(f"\n{label}\n")[1].splitlines()[: len(best)]
        assert block == [f"  {score:.3f}  {image}" for _, score, image in best]
    second = run("photo_search.py", "--find", "moon", "--best", "1")
    assert second.splitlines()[0] == "moon"
    assert len(second.splitlines()) == 2


def test_photo_search_goes_on_where_it_was_killed(run, tmp_path, monkeypatch):
    whole = run("photo_search.py")
    (tmp_path / "photo_index.parquet").unlink()
    rank = Tagger._rank

    batches = []

    def killed(self, *arguments):
        batches.append(arguments)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return rank(self, *arguments)

    monkeypatch.setattr(Tagger, "_rank", killed)
    with pytest.raises(KeyboardInterrupt):
        run("photo_search.py")
    monkeypatch.setattr(Tagger, "_rank", rank)
    assert run("photo_search.py") == whole.replace("(0 before)", "(32 before)")


def test_picture_of_tags_draws(run, tmp_path):
    run("picture_of_tags.py", "ovml-demo", tmp_path / "tags.png")
    picture = Image.open(tmp_path / "tags.png")
    assert picture.width > 3 * 256
    assert len(picture.convert("RGB").getcolors(2**24)) > 1000


def test_pretrain_demo_clip_makes_a_clip(tmp_path):
    out = tmp_path / "clip"
    sizes = ["--steps", "2", "--scenes", "16", "--batch-size", "4", "--eval-scenes", "8", "--out", str(out)]
    command = [sys.executable, str(EXAMPLES / "pretrain_demo_clip.py"), *sizes]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    embeds = TextEncoder(load_clip(str(out)), load_tokenizer(str(out)))(["a red circle", "a star"])
    assert embeds.shape == (2, 128)
    assert "random initial weights" in (out / "README.md").read_text()
    command += ["--start", str(out), "--state", str(tmp_path / "state.pt")]
    command[command.index(str(out))] = str(tmp_path / "next")
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "weights start from those of the former `ovml-demo`" in (tmp_path / "next" / "README.md").read_text()
    again = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert "resuming after step 2" in again.stdout


def test_tag_with_ray_passes_its_options_on(run, monkeypatch):
    """The tagging itself is tested with `ovml.inference.ray`."""
    asked = []

    def tag(images, options, out, **others):
        asked.append((images, options, out, others))
        others["on_rows"](Written(1500, 0, 0))
        return Written(3000, 1000, 2)

    monkeypatch.setattr("ovml.inference.ray.tag_with_ray", tag)
    arguments = ["--labels", "cat,dog", "--prompt", "a {}", "--top-k", "2", "--workers", "3", "--overwrite"]
    said = run("tag_with_ray.py", "photos", "tags", *arguments)
    assert said.splitlines() == ["1,500 images", "tags: 3,000 images (1,000 before), 2 could not be read"]
    ((images, options, out, others),) = asked
    assert (images, out, others["workers"], others["overwrite"]) == ("photos", "tags", 3, True)
    assert (options.labels, options.prompt, options.top_k) == (("cat", "dog"), ["a {}"], 2)


def test_the_command_line_takes_all_parts(own, tmp_path, monkeypatch, capsys):
    """The YAML of the tutorials: every part of one's own at once."""
    from own_dataset import draw_folder

    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "clip": "ovml-demo",
            "head": "own_head.MaxPatchHead",
            "loss": "own_loss.KnownBinaryCrossEntropy",
            "prompt": {"class_path": "own_prompt.PrefixPrompt", "init_args": {"start": "a picture of a"}},
            "ks": [1],
            "stages": [{"class_path": "own_stage.BiasStage", "init_args": {"warmup_epochs": 0}}, "PromptStage"],
            "protocols": [{"class_path": "own_protocol.LabelsWith", "init_args": {"word": "star"}}],
        },
        "data": {
            "class_path": "own_dataset.CSVDataModule",
            "init_args": {"root": str(draw_folder(20)), "unseen": ["moon"], "cache_dir": str(tmp_path)},
        },
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu", "default_root_dir": "runs"},
    }
    Path("my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "my.yaml"]) == 0
    assert Path("runs/version_0/bias/last.ckpt").is_file()
    assert Path("runs/version_0/prompt/last.ckpt").is_file()
    assert main(["test", "--ckpt_path", "runs/version_0"]) == 0
    assert "with 'star'" in capsys.readouterr().out
