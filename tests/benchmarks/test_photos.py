"""Photographs as a data module, and the comparison on them: withheld labels, each part, tables, what is loaded."""

import json
import sys
from pathlib import Path

import fake_photos
import pandas as pd
import pretrain_demo_clip as demo
import pytest
from worlds.photos import compare as module
from worlds.photos.compare import Comparison, evaluate, measure_training_free, table, table_rows
from worlds.photos.datamodule import CaptionDataModule
from worlds.photos.labels import label_list
from worlds.photos.photographs import captions_of, load_photographs, some_words
from worlds.photos.pretrain_clip import build_model
from worlds.photos.variants import PAPER, SMALL, variants

from ovml.cli.main import main
from ovml.data import HubDataModule
from ovml.heads import CosineHead
from ovml.utils.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "photos"
LABELS = label_list()
here = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/photos is not here")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(fake_photos.write(tmp_path_factory.mktemp("photos") / "set", (40, 6, 9)))


@pytest.fixture(scope="module")
def clip(data, tmp_path_factory):
    """A CLIP of random weights, of the size that is trained."""
    out = tmp_path_factory.mktemp("clip") / "clip"
    words = some_words([*captions_of(load_photographs(data).splits["train"], data), LABELS.vocabulary.names])
    tokenizer = demo.build_tokenizer(words)
    demo.save(build_model(tokenizer), tokenizer, "", out)
    return str(out)


def comparison(clip, data, root, **changed):
    return Comparison(
        **{"clips": [clip], "data": data, "coco": None, "root": root, **changed}, settings=SMALL, seeds=[0]
    )


def names_of(rows, vocabulary):
    return {vocabulary.names[i] for ids in rows["positive"][:] for i in ids}


def test_training_rows_have_no_withheld_label(data):
    module = CaptionDataModule(data, clip="ovml-demo", batch_size=5)
    vocabulary = module.vocabulary
    assert "mountain" in vocabulary.unseen
    tested = names_of(module.dataset("test"), vocabulary)
    assert {"dog", "grass", "boat", "lake", "water", "snow", "skier", "mountain"} <= tested
    assert names_of(module.dataset("train"), vocabulary) == tested - set(vocabulary.unseen)
    batch = next(iter(module.train_dataloader()))
    assert batch["labels"].shape == (5, len(vocabulary))
    assert not batch["labels"][:, len(vocabulary.seen) :].any()
    assert batch["image_id"][0].startswith("train-")


@here
def test_the_shared_photographs_have_no_withheld_label_in_training(tmp_path):
    module = CaptionDataModule(str(SHARED / "flickr8k"), str(tmp_path), clip="ovml-demo")
    assert max(max(ids, default=0) for ids in module.dataset("train")["positive"][:]) < len(LABELS.seen)
    assert names_of(module.dataset("test"), module.vocabulary) == set(module.vocabulary.names)
    assert module.dataset("train")[0]["image"].size == (128, 128)


def test_a_column_for_each_caption_gives_the_same_labels(data, tmp_path):
    other = tmp_path / "columns"
    other.mkdir()
    for file in Path(data).glob("*.parquet"):
        rows = pd.read_parquet(file)
        texts = pd.DataFrame(rows.pop("captions").tolist()).add_prefix("caption_")
        pd.concat([rows, texts], axis=1).to_parquet(other / file.name)
    first, second = (CaptionDataModule(path).dataset("test") for path in (data, str(other)))
    assert first["positive"][:] == second["positive"][:]


@pytest.mark.parametrize("variant", ["MKT", "best.yaml", "RAM as published", "QKS", "DualCoOp"])
def test_a_variant_trains_and_is_tested(variant, clip, data, tmp_path):
    plan = comparison(clip, data, tmp_path, quick=True)
    configs = [option for config in plan.configs for option in ("--config", config)]
    small = ["--trainer.accelerator", "cpu", "--trainer.limit_train_batches", "1"]
    small += ["--trainer.enable_progress_bar", "false"]
    options = [*plan.options(clip), *small, "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", *configs, *options, *plan.variants[variant]]) == 0
    rows = json.loads((tmp_path / "version_0" / "results.json").read_text())
    assert "zero-shot" in rows
    assert len(rows) > 1


def test_a_cosine_is_zero_shot_clip(clip, data, tmp_path):
    plan = comparison(clip, data, tmp_path)
    photographs = CaptionDataModule(data, clip=clip)
    found = evaluate(clip, CosineHead(), None, photographs, photographs)
    assert 0 < found["gzsl/mAP"] <= 1
    (plan.folder(clip) / "training-free").mkdir(parents=True)
    for name in module.training_free(["one"]):
        if name != "CosineHead":
            (plan.folder(clip) / "training-free" / f"{name.replace(' ', '-')}.json").write_text("{}")
    measure_training_free(plan, clip)
    rows = table_rows(plan)
    assert rows["CosineHead"][clip]["gzsl/mAP"] == pytest.approx(100 * found["gzsl/mAP"], abs=0.01)


@here
def test_photographs_of_coco_are_scored_with_all_its_names(tmp_path):
    plan = comparison("ovml-demo", "none", tmp_path, coco=SHARED / "coco_photos.parquet")
    data = HubDataModule(**plan.coco_data(), cache_dir=str(tmp_path / "cache"), clip="ovml-demo")
    assert (len(data.vocabulary.seen), len(data.vocabulary.unseen)) == (63, 17)
    assert len(data.dataset("test")) == 355
    paths = [protocol["init_args"]["path"] for protocol in plan.coco_protocols()]
    first, second = (Path(path).read_text().splitlines() for path in paths)
    assert len(first) == 65
    assert {"elephant", "zebra"} <= set(second)
    assert not {"dog", "car", "bicycle"} & set(second)


def test_a_test_on_other_data_leaves_the_results_of_the_run(tmp_path, monkeypatch):
    own = tmp_path / "test_results.json"
    own.write_text("own")
    monkeypatch.setattr(module, "ovml", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # interrupted
        module.test_elsewhere(tmp_path, "coco", [], 1)
    own.write_text("half")
    monkeypatch.setattr(module, "ovml", lambda *_: own.write_text("coco"))
    module.test_elsewhere(tmp_path, "coco", [], 1)
    assert own.read_text() == "own"
    assert (tmp_path / "test_results.coco.json").read_text() == "coco"
    monkeypatch.setattr(module, "ovml", lambda *_: pytest.fail("tested again"))
    module.test_elsewhere(tmp_path, "coco", [], 1)


def test_the_tables_have_means_and_gains_over_mkt_of_the_same_clip_and_seed(tmp_path):
    plan = Comparison(["a", "b"], "none", None, tmp_path, SMALL, [0, 1])
    values = {("MKT", "a"): 0.2, ("MKT", "b"): 0.4, ("multi-matching", "a"): 0.25, ("multi-matching", "b"): 0.47}
    for (variant, clip), value in values.items():
        folder = tmp_path / clip / variant / "seed-0" / "version_0"
        folder.mkdir(parents=True)
        stages = {"zero-shot": 0.1, "vision": value - 0.01, "prompt": value}
        rows = {stage: {"zsl/mAP": mAP, "gzsl/mAP": mAP} for stage, mAP in stages.items()}
        (folder / "test_results.json").write_text(json.dumps(rows))
        (folder / "results.json").write_text(json.dumps(rows))
    rows = table_rows(plan)
    assert list(rows) == ["zero-shot CLIP", "MKT", "MKT, no prompt tuning", "multi-matching"]
    lines = table(rows, {"zsl/mAP": "ZSL mAP"}, {"zsl/mAP": "over MKT"}).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines[2:]}
    assert cells["MKT"] == ["2", "30.0 ± 14.1", "+0.0"]
    assert cells["MKT, no prompt tuning"][2] == "-1.0"
    assert cells["multi-matching"] == ["2", "36.0 ± 15.6", "+6.0 ± 1.4"]
    assert cells["zero-shot CLIP"] == ["2", "10.0", "-20.0 ± 14.1"]


def test_variants_of_both_sizes_are_the_same():
    assert list(variants(SMALL, 100)) == list(variants(PAPER, 100))


def test_with_the_hub_it_says_what_it_loads_up_to_the_download(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["--clip", "nobody/no-clip-b16", "--data", "nobody/no-photographs"]
    monkeypatch.setattr(sys, "argv", ["compare", *names, "--plan"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "CLIP: nobody/no-clip-b16 (from the Hub: weights, tokenizer, image processor)"
    assert lines[1].startswith("photographs: nobody/no-photographs (from the Hub:")
    assert lines[2] == "COCO: left out, no such file"
    assert "photos_paper.yaml" in lines[4]
    monkeypatch.setattr(sys, "argv", ["compare", *names])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    assert "nobody/no-clip-b16: no such checkpoint here, and the Hugging Face Hub" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"nobody/no-photographs: .*(Hub|cache)"):
        CaptionDataModule("nobody/no-photographs").dataset("test")


def test_a_variant_that_is_none_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "--clip", str(tmp_path), "--variants", "MTK"])
    with pytest.raises(SystemExit):
        module.main()
    assert "'MTK' is none of MKT, no distillation" in capsys.readouterr().err
