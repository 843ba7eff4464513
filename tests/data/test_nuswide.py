import codecs
import pickle
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from conftest import SHARED
from data.fake_nuswide import CONCEPTS, SEEN, VOCABULARY, make_truth, write_h5, write_official, write_pictures
from hypothesis import given
from hypothesis import strategies as st

from ovml.data.image_files import verify_images
from ovml.data.nuswide import files as nuswide_files
from ovml.data.nuswide.datamodule import NUSWIDEDataModule
from ovml.data.nuswide.files import SOURCE, WrongValueError, read_ones
from ovml.data.nuswide.h5 import image_paths, read_image_names
from ovml.utils.errors import UserError

LISTS = ("nuswide_tags1k.txt", "nuswide_unseen81.txt")


@pytest.fixture
def truth():
    return make_truth()


@pytest.fixture
def official(tmp_path, truth):
    write_official(tmp_path / "set", truth)
    write_pictures(tmp_path / "set", truth)
    return tmp_path / "set"


@pytest.fixture
def module(tmp_path, tiny):
    def make(root, **options):
        return NUSWIDEDataModule(str(root), cache_dir=str(tmp_path / "cache"), clip=tiny, batch_size=4, **options)

    return make


def rows_of(data, split):
    rows = data.annotations(split).rows.cast_column("image", datasets.Image(decode=False))
    return [(row["image_id"], row["image"]["path"], row["positive"], row["negative"]) for row in rows]


def expected_rows(root, truth, split):
    return [(i, str(root / "Flickr" / i), truth.positive(i), []) for i in truth.images[split]]


def dense(data, split):
    """Labels as the loader gives them, by image."""
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()
    return {i: row.tolist() for batch in loader for i, row in zip(batch["image_id"], batch["labels"], strict=True)}


def edit(path, change):
    path.write_text(change(path.read_text()))


# The official distribution


@pytest.mark.parametrize("separator", [" ", "\t", " \t"])
@pytest.mark.parametrize("trailing", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_official_rows_are_those_of_a_naive_reading(tmp_path, module, truth, separator, trailing, end):
    root = tmp_path / "set"
    write_official(root, truth, separator, trailing, end)
    data = module(root)
    assert data.vocabulary.seen == SEEN
    assert data.vocabulary.unseen == CONCEPTS
    assert data.exhaustive
    for split in ("train", "test"):
        assert rows_of(data, split) == expected_rows(root, truth, split)


def test_batches_hold_the_truth_of_both_label_sets(module, official, truth):
    data = module(official)
    for split in ("train", "test"):
        expected = {i: [int(c in truth.positive(i)) for c in range(len(VOCABULARY))] for i in truth.images[split]}
        assert dense(data, split) == expected


def test_validation_is_the_test_split_or_held_out(module, official, truth):
    assert len(module(official).dataset("validation")) == 5
    data = module(official, validation_size=2)
    held_out, kept = (set(data.dataset(split)["image_id"]) for split in ("validation", "train"))
    assert len(held_out) == 2
    assert held_out | kept == set(truth.images["train"])
    assert not held_out & kept


@pytest.mark.parametrize("gone", [["NUS_WID_Tags/*_Tags1k.dat"], ["Groundtruth/TrainTestLabels/*"], None])
def test_rows_are_picked_from_the_files_of_all_images(module, official, truth, gone):
    for pattern in gone or ["NUS_WID_Tags/*_Tags1k.dat", "Groundtruth/TrainTestLabels/*"]:
        for file in official.glob(pattern):
            file.unlink()
    for split in ("train", "test"):
        assert rows_of(module(official), split) == expected_rows(official, truth, split)


def test_files_of_all_images_are_not_needed(module, official, truth):
    shutil.rmtree(official / "Groundtruth" / "AllLabels")
    for file in ("ImageList/Imagelist.txt", "NUS_WID_Tags/AllTags1k.txt"):
        (official / file).unlink()
    assert rows_of(module(official), "train") == expected_rows(official, truth, "train")


def test_concepts_may_lie_in_their_own_folder(module, official):
    (official / "ConceptsList").mkdir()
    (official / "Concepts81.txt").rename(official / "ConceptsList" / "Concepts81.txt")
    assert module(official).vocabulary.unseen == CONCEPTS


def test_failed_downloads_count_as_missing(module, official, truth):
    first, second, *others = truth.images["train"]
    (official / "Flickr" / first).write_bytes(b"x" * 4000)
    (official / "Flickr" / second).unlink()
    for name in others:
        (official / "Flickr" / name).write_bytes(b"unavailable" * 500)
    data = module(official, max_missing=1.0)
    assert data.check("train").missing.tolist() == list(range(7))
    assert len(data.check("test").missing) == 0
    with pytest.raises(UserError, match=r"7 of the 7 images of the train split .*nuswide/NUS-WIDE\.html"):
        module(official).dataset("train")


def test_wrong_value_of_a_split_file_is_taken_from_the_file_of_all(module, official, truth, caplog):
    """As in the official Labels_lake_Train.txt, one of whose lines is -1130179."""
    edit(official / "Groundtruth/TrainTestLabels/Labels_zebra_Train.txt", lambda text: "-1130179\n" + text[2:])
    data = module(official)
    assert rows_of(data, "train") == expected_rows(official, truth, "train")
    assert "Labels_zebra_Train.txt, line 1: '-1130179' is neither 0 nor 1" in caplog.text
    assert "AllLabels/Labels_zebra.txt is read instead" in caplog.text
    assert list(module(official).annotations("train").counts.values()) == [1]
    assert module(official).annotations("test").counts == {}


def test_changed_files_are_read_again(module, official, truth):
    assert rows_of(module(official), "train") == expected_rows(official, truth, "train")
    edit(official / "Groundtruth/TrainTestLabels/Labels_zebra_Train.txt", lambda text: text.replace("1", "0") + "\n")
    assert all(VOCABULARY.index("zebra") not in row[2] for row in rows_of(module(official), "train"))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("Groundtruth/TrainTestLabels/Labels_sky_Train.txt", lambda t: t[:-2], "6 lines, but 7 images are listed"),
        ("Groundtruth/TrainTestLabels/Labels_sky_Train.txt", lambda t: t + "0\n", "8 lines, but 7 images"),
        ("NUS_WID_Tags/Train_Tags1k.dat", lambda t: t.replace("\n", "1\n", 1), "line 1: 8 values, 7 expected"),
        ("NUS_WID_Tags/Train_Tags1k.dat", lambda t: t.rstrip()[:-2], "line 7: 6 values, 7 expected"),
        ("ImageList/TrainImagelist.txt", lambda t: t + t.splitlines()[0], r"jpg is listed 2 times"),
        ("ImageList/TrainImagelist.txt", lambda t: "\n", "TrainImagelist.txt: lists no image"),
        ("ImageList/TrainImagelist.txt", lambda t: "\n0001_1.jpg\n" + t, "line 2: '0001_1.jpg', but <tag>/"),
        ("NUS_WID_Tags/TagList1k.txt", lambda t: t + "one more", "line 1: 7 values, 8 expected"),
        (
            "Concepts81.txt",
            lambda t: t + "lake",
            r"Labels_lake_Train\.txt: no such file, nor .*Labels_lake\.txt; download it",
        ),
    ],
)
def test_bad_files_are_named(module, official, file, change, message):
    edit(official / file, change)
    with pytest.raises(UserError, match=message) as error:
        module(official).annotations("train")
    assert "\n" not in str(error.value)
    assert not list(official.parent.glob("cache/*part*"))


@pytest.mark.parametrize("value", ["2", "10", "-1", ",", "0,", "x", "/"])
def test_values_other_than_0_and_1_are_named_with_their_line(module, official, value):
    for file in official.glob("*/AllTags1k.txt"):
        file.unlink()
    edit(official / "NUS_WID_Tags/Train_Tags1k.dat", lambda text: text[:15] + value + text[16:])
    with pytest.raises(UserError, match=rf"Train_Tags1k.dat, line 2: '{value}' is neither 0 nor 1; add .*AllTags1k"):
        module(official).annotations("train")


def test_wrong_value_in_the_file_of_all_images(module, official):
    (official / "NUS_WID_Tags/Train_Tags1k.dat").unlink()
    edit(official / "NUS_WID_Tags/AllTags1k.txt", lambda text: "3" + text[1:])
    with pytest.raises(UserError, match=r"AllTags1k.txt, line 1: '3' is neither 0 nor 1; download the file again"):
        module(official).annotations("train")


def test_image_that_no_list_of_all_has(module, official):
    (official / "NUS_WID_Tags/Train_Tags1k.dat").unlink()
    edit(official / "ImageList/TrainImagelist.txt", lambda text: "actor\\0001_1.jpg\n" + text.split("\n", 1)[1])
    with pytest.raises(UserError, match=r"TrainImagelist.txt: actor/0001_1.jpg is not listed in .*Imagelist.txt"):
        module(official).annotations("train")


@pytest.mark.parametrize(
    "file",
    ["ImageList/TrainImagelist.txt", "NUS_WID_Tags/TagList1k.txt", "Concepts81.txt"],
)
def test_missing_part_is_named_with_its_source(module, official, file):
    (official / file).unlink()
    with pytest.raises(UserError) as error:
        module(official).annotations("train")
    assert str(official / file) in str(error.value)
    assert SOURCE in str(error.value)


def test_missing_tables_are_named_with_their_source(module, official):
    for file in official.glob("NUS_WID_Tags/*Tags1k*"):
        file.unlink()
    with pytest.raises(
        UserError, match=r"Train_Tags1k\.dat: no such file, nor .*AllTags1k\.txt; download it .*NUS-WIDE\.html"
    ):
        module(official).annotations("train")


# Tables of 0 and 1


@given(
    width=st.integers(1, 5),
    rows=st.integers(0, 40),
    separator=st.sampled_from([" ", "\t", "  "]),
    end=st.sampled_from(["\n", "\r\n", " \r\n", "\n\n"]),
    last=st.booleans(),
    block=st.integers(1, 100),
    seed=st.integers(0, 999),
)
def test_ones_do_not_depend_on_the_form(tmp_path_factory, width, rows, separator, end, last, block, seed):
    table = np.random.default_rng(seed).integers(0, 2, (rows, width))
    text = end.join(separator.join(map(str, line)) for line in table) + (end if last else "")
    path = tmp_path_factory.mktemp("ones") / "table.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuswide_files, "BLOCK_BYTES", block)
        ones = read_ones(path, width, rows)
    expected = np.nonzero(table)
    assert np.array_equal(ones.rows, expected[0])
    assert np.array_equal(ones.columns, expected[1])


@given(st.text("01 2\t\n-", max_size=30), st.integers(1, 3))
def test_every_table_is_read_or_refused_as_a_naive_reader_does(tmp_path_factory, text, width):
    path = tmp_path_factory.mktemp("ones") / "table.txt"
    path.write_text(text)
    lines = [line.split() for line in text.split("\n") if line.split()]
    try:
        ones = read_ones(path, width, len(lines))
    except WrongValueError:
        assert any(value not in "01" or len(value) > 1 for line in lines for value in line)
    except UserError:
        assert any(len(line) != width for line in lines)
    else:
        assert all(len(line) == width for line in lines)
        found = set(zip(ones.rows.tolist(), ones.columns.tolist(), strict=True))
        assert found == {(i, j) for i, line in enumerate(lines) for j, value in enumerate(line) if value == "1"}


def test_line_numbers_count_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(nuswide_files, "BLOCK_BYTES", 10)
    (tmp_path / "labels.txt").write_text("0\n1\n" * 20 + "2\n")
    with pytest.raises(WrongValueError, match="line 41: '2'"):
        read_ones(tmp_path / "labels.txt", 1, 41)


# The layout of BiAM and MKT


@pytest.mark.parametrize("prefix", ["", "_home_me_data_Flickr_", "data_"])
def test_both_layouts_give_the_same_rows(tmp_path, module, official, truth, prefix):
    root = tmp_path / "h5"
    write_h5(root, truth, prefix)
    (root / "Flickr").symlink_to(official / "Flickr")
    ours, theirs = module(official), module(root)
    assert theirs.exhaustive
    assert theirs.vocabulary == ours.vocabulary
    for split in ("train", "test"):
        assert rows_of(theirs, split) == expected_rows(root, truth, split)
        assert dense(theirs, split) == dense(ours, split)


def test_unknown_stays_unknown(tmp_path, module, truth):
    image = truth.images["test"][1]
    write_h5(tmp_path / "h5", truth, unknown=((image, "blue"), (image, "zebra")))
    write_pictures(tmp_path / "h5", truth)
    data = module(tmp_path / "h5")
    assert not data.exhaustive
    for split in ("train", "test"):
        for name, row in dense(data, split).items():
            annotations = [int(c in truth.positive(name)) for c in range(len(VOCABULARY))]
            if name == image:
                annotations[VOCABULARY.index("blue")] = annotations[VOCABULARY.index("zebra")] = -1
            assert row == annotations
    assert data.annotations("test").counts == {"unknown annotations": 2}


def test_unseen_labels_of_the_long_row_count_where_there_are_no_others(tmp_path, module, truth):
    import h5py

    write_h5(tmp_path / "h5", truth)
    for split in ("train", "test"):
        with h5py.File(tmp_path / "h5" / "features" / f"nus_wide_{split}.h5", "a") as file:
            for name in [name for name in file if name.endswith("_81")]:
                del file[name]
    data = module(tmp_path / "h5")
    assert [row[2] for row in rows_of(data, "test")] == [truth.positive(i) for i in truth.images["test"]]
    assert data.annotations("train").counts == {"unknown annotations": 7 * len(CONCEPTS)}
    for _, _, positive, negative in rows_of(data, "train"):
        assert sorted(positive + negative) == list(range(len(SEEN)))


def test_tag_is_the_longest_end_that_is_a_folder(tmp_path):
    names = [
        "blue_sky_0001_1.jpg",
        "data_Flickr_blue_sky_0002_2.jpg",
        "data_Flickr_not_there_0003_3.jpg",
        "no_0004_4.jpg",
    ]
    found = image_paths(names, {"sky", "blue_sky", "actor"}, tmp_path)
    assert found == ["blue_sky/0001_1.jpg", "blue_sky/0002_2.jpg", "not_there/0003_3.jpg", "no/0004_4.jpg"]


@pytest.mark.parametrize("name", ["0001_1.jpg", "x.jpg", "", "_0001_1.jpg"])
def test_image_names_of_another_form(tmp_path, name):
    with pytest.raises(UserError, match="but <tag>_<n>_<id>.jpg is expected"):
        image_paths([name], set(), tmp_path)


def test_pickles_run_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    path = tmp_path / "img_names.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"img_names": [Trap()]}, protocol=protocol))
        with pytest.raises(UserError, match="asks for .*exec, which could run code"):
            read_image_names(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(dp0\nS'img_names'\np1\n(lp2\nS'sky_0001_1.jpg'\np3\nas.",  # what Python 2 wrote
        b"\x80\x02}q\x00U\timg_namesq\x01]q\x02U\x0esky_0001_1.jpgq\x03as.",
        pickle.dumps({"img_names": ["sky_0001_1.jpg"]}),
    ],
)
def test_pickles_of_any_age(tmp_path, content):
    (tmp_path / "names.pkl").write_bytes(content)
    assert read_image_names(tmp_path / "names.pkl") == ["sky_0001_1.jpg"]


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps(["x"]), pickle.dumps({"img_names": [1]})])
def test_pickles_of_another_form(tmp_path, content):
    (tmp_path / "names.pkl").write_bytes(content)
    with pytest.raises(UserError, match="names.pkl: .*download it again"):
        read_image_names(tmp_path / "names.pkl")


def test_bad_h5_files_are_named(tmp_path, module, truth):
    import h5py

    def fails(message):
        with pytest.raises(UserError, match=message) as error:
            module(root).annotations("train")
        assert "\n" not in str(error.value)

    root = tmp_path / "h5"
    write_h5(root, truth)
    path = root / "features" / "nus_wide_train.h5"
    key = truth.images["train"][2].replace("/", "_") + "-labels"
    for values, message in [
        (np.full(4, -1, np.int8), rf"{key} has the shape \(4,\), 5 or 8 values expected"),
        *(
            (np.full(5, value, kind), f"{key} has values other than 1, 0 and -1")
            for value, kind in [(2, np.int8), (0.5, "f4"), (np.nan, "f8"), (255, np.uint8), (b"1", "S1")]
        ),
        (None, "nus_wide_train.h5: no labels of"),
    ]:
        with h5py.File(path, "a") as file:
            del file[key]
            if values is not None:
                file[key] = values
        fails(message)
    path.write_bytes(b"no HDF5")
    fails("nus_wide_train.h5: cannot be read as HDF5")
    path.unlink()
    fails("nus_wide_train.h5: no such file; download it from")
    (root / "img_names.pkl").write_bytes(pickle.dumps({"img_names": []}))
    fails("img_names.pkl: lists no image")
    (root / "img_names.pkl").write_bytes(pickle.dumps({"img_names": ["sky_1_2.jpg"] * 2}))
    fails("sky/1_2.jpg is listed 2 times")
    (root / "img_names.pkl").unlink()
    fails("img_names.pkl: no such file")


def test_h5_files_say_how_to_install_h5py(tmp_path, module, truth, monkeypatch):
    write_h5(tmp_path / "h5", truth)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'ovml\[nuswide\]'"):
        module(tmp_path / "h5").annotations("train")


# Rows of `datasets`


def save(root, truth, labels=lambda truth, i: [VOCABULARY[x] for x in truth.positive(i)], **columns):
    """Save what a user of `datasets` would: pictures inside, label names."""
    parts = {}
    for split, images in truth.images.items():
        rows = {"image": [str(root.parent / "set" / "Flickr" / i) for i in images]}
        rows |= {"positive": [labels(truth, i) for i in images], "image_id": images}
        rows |= {name: values(images) for name, values in columns.items()}
        parts[split] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(root)
    (root / "Concepts925.txt").write_text("\n".join(SEEN))
    (root / "Concepts81.txt").write_text("\n".join(CONCEPTS))


@pytest.mark.parametrize(
    "labels", [lambda truth, i: [VOCABULARY[x] for x in truth.positive(i)], type(make_truth()).positive]
)
def test_saved_rows_give_the_same_batches(tmp_path, module, official, truth, labels):
    save(tmp_path / "saved", truth, labels)
    shutil.move(official / "Flickr", tmp_path / "elsewhere")  # the pictures are inside
    data = module(tmp_path / "saved")
    assert data.exhaustive
    shutil.move(tmp_path / "elsewhere", official / "Flickr")
    ours = module(official)
    assert data.vocabulary == ours.vocabulary
    for split in ("train", "test"):
        assert dense(data, split) == dense(ours, split)
    batch, other = (next(iter(d.test_dataloader()))["pixel_values"] for d in (data, ours))
    assert torch.equal(batch, other)
    assert len(verify_images(data.annotations("test"), data.check("test")).lost) == 0
    assert len(module(tmp_path / "saved", validation_size=3).dataset("train")) == 4


def test_saved_class_labels_keep_their_names(tmp_path, module, official, truth):
    save(tmp_path / "saved", truth)
    names = sorted(VOCABULARY)
    feature = datasets.List(datasets.ClassLabel(names=names))
    rows = datasets.load_from_disk(tmp_path / "saved").cast_column("positive", feature)
    rows.save_to_disk(tmp_path / "classes")
    for name in ("Concepts81.txt", "Concepts925.txt"):
        shutil.copy(tmp_path / "saved" / name, tmp_path / "classes")
    assert dense(module(tmp_path / "classes"), "test") == dense(module(official), "test")


def test_saved_negatives_leave_the_rest_unknown(tmp_path, module, official, truth):
    save(tmp_path / "saved", truth, lambda truth, i: ["blue"], negative=lambda images: [["zebra"]] * len(images))
    data = module(tmp_path / "saved")
    assert not data.exhaustive
    expected = [{"blue": 1, "zebra": 0}.get(name, -1) for name in VOCABULARY]
    assert list(dense(data, "test").values()) == [expected] * 5


def test_bad_saved_rows_are_named(tmp_path, module, official, truth):
    save(tmp_path / "saved", truth, lambda truth, i: ["lake"])
    with pytest.raises(UserError, match="'lake' in positive of the train split is none of the 8 labels"):
        module(tmp_path / "saved").annotations("train")
    rows = datasets.load_from_disk(tmp_path / "saved")
    rows["train"].save_to_disk(tmp_path / "one")
    with pytest.raises(UserError, match="splits train and test are expected; found train"):
        module(tmp_path / "one").annotations("train")
    rows.remove_columns("image").save_to_disk(tmp_path / "blind")
    with pytest.raises(UserError, match=r"needs the columns image and positive.*Flickr"):
        module(tmp_path / "blind").annotations("train")
    (tmp_path / "blind" / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="blind: cannot be read"):
        module(tmp_path / "blind").annotations("train")


def test_saved_row_without_a_picture_is_missing(tmp_path, module, official, truth):
    save(tmp_path / "saved", truth)
    rows = datasets.load_from_disk(tmp_path / "saved")
    rows["test"] = rows["test"].map(lambda row, n: {"image": None if n == 1 else row["image"]}, with_indices=True)
    rows.save_to_disk(tmp_path / "holes")
    for name in ("Concepts81.txt", "Concepts925.txt"):
        shutil.copy(tmp_path / "saved" / name, tmp_path / "holes")
    assert module(tmp_path / "holes").check("test").missing.tolist() == [1]


# Which layout it is


def test_root_must_be_there(tmp_path, module, monkeypatch):
    with pytest.raises(UserError, match="nowhere: no such folder; .*NUS-WIDE.html"):
        module(tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data/nuswide: no such folder"):
        module("data/nuswide")


def test_hub_name_that_cannot_be_had(module):
    data = module("no-such-owner/no-such-set")
    with pytest.raises(
        UserError, match="no-such-owner/no-such-set: no such folder, and it cannot be loaded from the Hub"
    ):
        data.annotations("train")


def test_annotations_without_pictures_say_what_to_do(tmp_path, module):
    with pytest.raises(UserError, match=r"annotations, no images; unpack its NUS-WIDE.zip and NUS_WID_Tags.zip"):
        module("Lxyhaha/NUS-WIDE")
    (tmp_path / "NUS_WID_Tags.zip").touch()
    with pytest.raises(UserError, match=r"unpack its NUS-WIDE.zip"):
        module(tmp_path)


def test_folder_of_something_else(tmp_path, module):
    with pytest.raises(UserError, match=r"no NUS-WIDE here; expected ImageList/TrainImagelist.txt .*nus_wide_train.h5"):
        module(tmp_path)


def test_official_layout_goes_first(tmp_path, module, official, truth):
    write_h5(official, truth)
    assert module(official).layout.__class__.__name__ == "OfficialFiles"
    (official / "ImageList" / "TrainImagelist.txt").unlink()
    assert module(official).layout.__class__.__name__ == "H5Files"


# The real lists


@pytest.fixture
def real_lists():
    paths = [SHARED / "data" / name for name in LISTS]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"the real label lists are not here: {SHARED / 'data'}")
    return [path.read_bytes() for path in paths]


def test_real_vocabulary(tmp_path, module, real_lists):
    (tmp_path / "NUS_WID_Tags").mkdir()
    (tmp_path / "NUS_WID_Tags" / "TagList1k.txt").write_bytes(codecs.BOM_UTF8 + real_lists[0])
    (tmp_path / "Concepts81.txt").write_bytes(real_lists[1])
    tags, concepts = (content.decode().split() for content in real_lists)
    vocabulary = module(tmp_path).vocabulary
    assert (len(vocabulary.seen), len(vocabulary.unseen)) == (925, 81)
    assert vocabulary.seen == tuple(tag for tag in tags if tag not in concepts)
    assert vocabulary.unseen == tuple(concepts)
    assert (vocabulary.seen[0], vocabulary.unseen[0], vocabulary.unseen[-1]) == ("nature", "airport", "zebra")
    assert vocabulary.seen[-1] == [tag for tag in tags if tag not in concepts][-1]
    assert not set(vocabulary.seen) & set(vocabulary.unseen)
