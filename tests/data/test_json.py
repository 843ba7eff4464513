"""JSON data sets against a plain reading of the same files."""

import json
import logging
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from fake_json import GZSL, SEEN, TRAIN, UNSEEN, unseen_only, write_json, write_tree
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ovml import UserError
from ovml.data.json.datamodule import IGNORED, REPEATED, JSONDataModule
from ovml.data.rows import RowReader


def plain_targets(names, *files):
    """Marks by path: what each file says about its own classes; the first file that lists an image counts."""
    marks = {}
    for file in files:
        content = json.loads(Path(file).read_text())
        for path, labels in content["images"]:
            row = [(1 if name in labels else 0) if name in content["classes"] else -1 for name in names]
            marks.setdefault(path, row)
    return marks


def targets(data, split):
    """Marks by image id, as the loader makes them."""
    reader = RowReader(None, len(data.vocabulary), data.exhaustive)
    rows = data.annotations(split).rows.remove_columns("image")
    return {row["image_id"]: reader.targets(row["positive"], row["negative"]).tolist() for row in rows}


def test_batches_follow_a_plain_reading(tmp_path, tiny):
    tree = write_tree(tmp_path)
    data = JSONDataModule(**tree, clip=tiny, batch_size=4)
    names = (*SEEN, *sorted(UNSEEN))
    assert data.vocabulary.names == names
    assert data.vocabulary.unseen == tuple(sorted(UNSEEN))
    (batch,) = data.train_dataloader()
    assert batch["pixel_values"].shape == (4, 3, 48, 48)
    plain = plain_targets(names, tmp_path / "train.json")
    seen = len(SEEN)
    assert {i: r[:seen] for i, r in zip(batch["image_id"], batch["labels"].tolist(), strict=True)} == {
        path: row[:seen] for path, row in plain.items()
    }
    for loader in (data.test_dataloader(), data.val_dataloader()):  # no validation of its own: the test split
        (batch,) = loader
        rows = dict(zip(batch["image_id"], batch["labels"].tolist(), strict=True))
        assert rows == plain_targets(names, tmp_path / "gzsl.json")
    assert data.exhaustive
    assert data.annotations("test").rows[0]["negative"] == []


name_lists = st.sets(st.sampled_from(SEEN)), st.sets(st.sampled_from(UNSEEN))
images = st.dictionaries(st.sampled_from([f"p{i}.jpg" for i in range(6)]), st.tuples(*name_lists), min_size=1)


@given(images, st.sets(st.sampled_from(range(6))), st.sets(st.sampled_from(range(6))), st.booleans(), st.booleans())
def test_any_lists_follow_a_plain_reading(tiny, content, not_zsl, not_gzsl, use_zsl, use_gzsl):
    everything = [[path, [*seen, *unseen]] for path, (seen, unseen) in content.items()]
    gzsl = [image for i, image in enumerate(everything) if i not in not_gzsl]
    zsl = unseen_only([image for i, image in enumerate(everything) if i not in not_zsl])
    roles = {"gzsl": use_gzsl and gzsl, "zsl": use_zsl and zsl}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_json(root / "train.json", SEEN, TRAIN)
        write_json(root / "gzsl.json", [*UNSEEN, *SEEN], gzsl)
        write_json(root / "zsl.json", UNSEEN, zsl)
        used = {f"{role}_file": f"{role}.json" for role, rows in roles.items() if rows}
        if not used:
            return
        data = JSONDataModule(folder, "train.json", **used, cache_dir=f"{folder}/cache", clip=tiny)
        plain = plain_targets(data.vocabulary.names, *(root / file for file in used.values()))
        assert targets(data, "test") == plain
        assert data.exhaustive == all(-1 not in row for row in plain.values())
        seen = data.vocabulary.seen_slice
        for path, row in plain_targets(data.vocabulary.names, root / "train.json").items():
            assert targets(data, "train")[path][seen] == row[seen]
        shutil.rmtree(root / "cache")


def test_differing_test_lists_are_warned_of(tmp_path, tiny, caplog):
    zsl = [*unseen_only(GZSL[1:]), ["test/7.png", ["boat"]]]
    data = JSONDataModule(**write_tree(tmp_path, zsl=zsl), clip=tiny, batch_size=8)
    with caplog.at_level(logging.WARNING, "ovml"):
        (batch,) = data.test_dataloader()
    assert "zsl.json lists 1 images that" in caplog.text
    assert "which lists 1 others" in caplog.text
    assert batch["image_id"] == ["test/0.png", "test/1.png", "test/2.png", "test/7.png"]
    assert batch["labels"][-1].tolist() == [-1, -1, -1, 1, 0]
    # Training rows keep their absent labels although unlisted ones are now unknown.
    assert targets(data, "train")["train/2.png"] == [0, 0, 0, -1, -1]


def test_protocols_score_only_what_is_known(tmp_path, tiny):
    """With a ZSL file alone nothing is known of seen labels; the evaluation runs all the same."""
    from lightning.pytorch import Trainer

    from ovml import OVMultiLabelClassifier

    tree = write_tree(tmp_path)
    data = JSONDataModule(tree["root"], "train.json", "zsl.json", cache_dir=tree["cache_dir"], clip=tiny)
    assert not data.exhaustive
    model = OVMultiLabelClassifier(tiny, labels=data.vocabulary)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", enable_checkpointing=False)
    (metrics,) = trainer.test(model, data, verbose=False)
    (batch,) = data.test_dataloader()
    with torch.no_grad():
        scores = model.eval()(batch["pixel_values"], data.vocabulary.unseen)
    expected = average_precision_score(batch["labels"][:, 3:].numpy(), scores.double().numpy(), average="macro")
    assert metrics["test/zsl/mAP"] == pytest.approx(expected, abs=1e-6)
    assert math.isnan(metrics["test/seen/mAP"])


def test_held_out_training_images_tell_nothing_of_unseen_labels(tmp_path, tiny):
    data = JSONDataModule(**write_tree(tmp_path), clip=tiny, validation_size=1)
    (batch,) = data.val_dataloader()
    assert batch["labels"][:, 3:].tolist() == [[-1, -1]]
    assert (batch["labels"][:, :3] >= 0).all()
    assert len(data.dataset("train")) == len(TRAIN) - 1


def test_a_validation_file_of_some_classes(tmp_path, tiny):
    tree = write_tree(tmp_path)
    write_json(tmp_path / "val.json", ["zebra", "cat"], [["train/1.png", ["cat"]], ["train/2.png", []]])
    data = JSONDataModule(**tree, validation_file="val.json", clip=tiny)
    (batch,) = data.val_dataloader()
    names = data.vocabulary.names
    plain = plain_targets(names, tmp_path / "val.json")
    assert dict(zip(batch["image_id"], batch["labels"].tolist(), strict=True)) == plain
    assert not data.exhaustive
    assert torch.cat([b["labels"] for b in data.test_dataloader()]).tolist() == list(
        plain_targets(names, tmp_path / "gzsl.json").values()
    )


@pytest.mark.parametrize("strip", ["/home/them/set", "/home/them/set/"])
def test_paths_of_another_machine(tmp_path, tiny, strip):
    data = JSONDataModule(**write_tree(tmp_path, prefix="/home/them/set/"), strip_prefix=strip, clip=tiny)
    (batch,) = data.test_dataloader()
    assert batch["image_id"] == ["test/0.png", "test/1.png", "test/2.png"]


def test_absolute_paths_of_files_and_images_stay(tmp_path, tiny):
    tree = write_tree(tmp_path / "set", prefix=f"{tmp_path}/set/")
    (tmp_path / "elsewhere").mkdir()
    files = {key: str(tmp_path / "set" / tree[key]) for key in ("train_file", "zsl_file", "gzsl_file")}
    arguments = {"root": str(tmp_path / "elsewhere"), **files, "cache_dir": tree["cache_dir"], "clip": tiny}
    assert len(JSONDataModule(**arguments, allow_outside=True).dataset("test")) == 3
    with pytest.raises(UserError, match=r"/train.json: image path '/.*train/0.png' leaves the folder /.*strip_prefix"):
        JSONDataModule(**arguments).dataset("test")
    inside = JSONDataModule(**{**arguments, "root": tree["root"]})
    assert len(inside.dataset("test")) == 3


def test_case_and_blanks_do_not_make_another_label(tmp_path, tiny):
    tree = write_tree(tmp_path)
    write_json(tmp_path / "gzsl.json", ["Red  Car", "CAT", "dog", *UNSEEN], [["test/0.png", ["red car", " cat"]]])
    write_json(tmp_path / "zsl.json", UNSEEN, [["test/0.png", []]])
    data = JSONDataModule(**tree, clip=tiny)
    assert data.vocabulary.seen == tuple(SEEN)
    assert targets(data, "test") == {"test/0.png": [1, 0, 1, 0, 0]}


def test_labels_of_other_files_and_repeated_rows_are_counted(tmp_path, tiny):
    tree = write_tree(tmp_path)
    write_json(tmp_path / "train.json", SEEN, [["train/0.png", ["cat", "boat", "boat"]], *TRAIN[1:], TRAIN[1]])
    data = JSONDataModule(**tree, clip=tiny)
    table = data.annotations("train")
    assert table.counts == {IGNORED: 1, REPEATED: 1}
    assert targets(data, "train")["train/0.png"] == [1, 0, 0, 0, 0]
    assert len(table.rows) == len(TRAIN)


def test_files_are_parsed_once(tmp_path, tiny, monkeypatch):
    tree = write_tree(tmp_path)
    first = JSONDataModule(**tree, clip=tiny)
    rows = first.dataset("test")[:]["positive"]
    assert first.dataset("train")
    monkeypatch.setattr(json, "load", lambda file: pytest.fail(f"parsed {file.name} again"))
    second = JSONDataModule(**tree, clip=tiny)
    assert second.vocabulary == first.vocabulary
    assert second.dataset("test")[:]["positive"] == rows
    assert second.dataset("train")
    monkeypatch.undo()
    write_json(tmp_path / "train.json", [*SEEN[::-1]], TRAIN)
    assert JSONDataModule(**tree, clip=tiny).vocabulary.seen == tuple(SEEN[::-1])


GOOD = {"classes": SEEN, "images": TRAIN}


@pytest.mark.parametrize(
    ("role", "content", "message"),
    [
        ("train", None, r"train.json: no such annotation file; it holds"),
        ("train", '{"classes": [', r"train.json: not JSON \(Expecting value: line 1 column 14"),
        ("train", "[" * 100_000, r"train.json: not JSON"),
        ("train", b"\xff\xfe{}", r"train.json: not UTF-8 text"),
        (
            "train",
            json.dumps(GOOD)[:-1] + ', "classes": ["cat"]}',
            r'train.json: "classes" stands twice in one object; keep one of them',
        ),
        ("train", [1, 2], r'train.json: expected \{"classes".*, got \[1, 2\]'),
        ("train", {"images": TRAIN}, r"train.json: classes: expected a list, it is missing"),
        ("train", {**GOOD, "images": {"a.png": []}}, r"train.json: images: expected a list, got \{"),
        ("train", {**GOOD, "classes": [*SEEN, "cat"]}, r"train.json: classes: 'cat' \(name 4\) is repeated \(name 1\)"),
        ("train", {**GOOD, "classes": [*SEEN, 3]}, r"train.json: classes: name 4 is 3; label names are strings"),
        ("train", {**GOOD, "classes": []}, r"train.json: classes: the list is empty"),
        ("train", {**GOOD, "images": []}, r"train.json: images: the list is empty"),
        ("train", {**GOOD, "images": [*TRAIN, ["x.png"]]}, r'train.json: images\[4\]: expected \["path".*\["x.png"\]'),
        ("train", {**GOOD, "images": [["x.png", "cat"]]}, r'train.json: images\[0\]: expected .*, got \["x.png", "cat'),
        ("train", {**GOOD, "images": [["", ["cat"]]]}, r"train.json: images\[0\]: expected"),
        ("train", {**GOOD, "images": [["\ud800", ["cat"]]]}, r"train.json: images\[0\]: expected"),
        ("train", {**GOOD, "images": [["x.png", [["cat"]]]]}, r'images\[0\]: label \["cat"\] is not a name'),
        ("train", {**GOOD, "images": [["x.png", ["cart"]]]}, r"images\[0\]: label 'cart' is in no class list"),
        (
            "gzsl",
            {"classes": [*SEEN, *UNSEEN], "images": [*GZSL, ["./test/1.png", ["cat"]]]},
            r"gzsl.json: images\[3\]: test/1.png has other labels than at images\[1\]; keep one",
        ),
        ("zsl", {"classes": [*UNSEEN, "Dog"], "images": []}, r"zsl.json: images: the list is empty"),
        (
            "zsl",
            {"classes": [*UNSEEN, "Dog"], "images": GZSL},
            r"zsl.json: 'Dog' of its classes are also in .*train.json",
        ),
        ("gzsl", {"classes": [*SEEN, "boat"], "images": GZSL}, r"gzsl.json: its classes lack 'zebra'; list all"),
        (
            "gzsl",
            {"classes": [*SEEN, *UNSEEN, "cow"], "images": GZSL},
            r"gzsl.json: 'cow' of its classes are in no other class list; add them to .*zsl.json",
        ),
        (
            "zsl",
            {"classes": UNSEEN, "images": [["test/1.png", ["boat", "zebra"]]]},
            r"zsl.json and .*gzsl.json disagree whether test/1.png shows 'boat'",
        ),
        (  # on the first of the unseen labels
            "zsl",
            {"classes": ["zebra", "boat"], "images": [["test/1.png", []]]},
            r"zsl.json and .*gzsl.json disagree whether test/1.png shows 'zebra'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, tiny, role, content, message):
    tree = write_tree(tmp_path)
    path = tmp_path / f"{role}.json"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        JSONDataModule(**tree, clip=tiny).dataset("test")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*part*"))


def test_arguments_that_do_not_fit(tmp_path, tiny):
    tree = write_tree(tmp_path)
    with pytest.raises(UserError, match=r"a test file is needed: give zsl_file=FILE"):
        JSONDataModule(tree["root"], "train.json", clip=tiny)
    with pytest.raises(UserError, match=r"no image's path begins with strip_prefix='/home/me/'; the first"):
        JSONDataModule(**tree, strip_prefix="/home/me", clip=tiny).dataset("train")
    (tmp_path / "test" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 3 images of the test split .*are missing.*test/1.png"):
        JSONDataModule(**tree, clip=tiny).dataset("test")
    assert len(JSONDataModule(**tree, clip=tiny, max_missing=0.5).dataset("test")) == 2


def test_images_held_out_have_a_cache_of_their_own(tmp_path, tiny):
    """The absent labels that a row lists depend on which labels every evaluation image knows."""
    tree = write_tree(tmp_path)
    whole = JSONDataModule(**tree, clip=tiny)
    assert targets(whole, "train")["train/0.png"] == [1, 0, 0, 0, 0]
    held = JSONDataModule(**tree, clip=tiny, validation_size=1)
    assert targets(held, "train")["train/0.png"] == [1, 0, 0, -1, -1]
    assert targets(JSONDataModule(**tree, clip=tiny), "train")["train/0.png"] == [1, 0, 0, 0, 0]
