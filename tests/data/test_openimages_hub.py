"""Open Images in the form that it has on the Hub: the same targets as from its own files."""

import datasets
import fake_openimages as fake
import pytest

from ovml.data.openimages.datamodule import OpenImagesDataModule
from ovml.utils.errors import UserError

LABELS = fake.TRAINABLE + fake.UNSEEN


@pytest.fixture
def module(tmp_path, tiny):
    """Makes a data module with a cache of its own."""

    def make(root, num_unseen=3, **kwargs):
        options = {"num_unseen": num_unseen, "cache_dir": str(tmp_path / "cache"), "allow_outside": True, **kwargs}
        return OpenImagesDataModule(str(root), clip=tiny, **options)

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Writes the fake rows as Parquet files in the form of the set on the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def write(label_of=str, rows=fake.ROWS):
        tree = fake.write(tmp_path / "tree")
        folder = tmp_path / "hub"
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "image_id": datasets.Value("string"),
                "title": datasets.Value("string"),
                "labels": [{"label": datasets.Value("string"), "confidence": datasets.Value("float32")}],
            }
        )
        for split, marks in rows.items():
            lists = {}
            for image, label, confidence in marks:
                lists.setdefault(image, []).append({"label": label_of(label), "confidence": float(confidence)})
            some = [
                {"image": str(tree / split / f"{image}.jpg"), "image_id": image, "title": "", "labels": labels}
                for image, labels in lists.items()
            ]
            (folder / "data").mkdir(parents=True, exist_ok=True)
            table = datasets.Dataset.from_list(some, features=features)
            table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        lists = {
            "classes_trainable": str(tree / "classes-trainable.txt"),
            "class_descriptions": str(tree / "class-descriptions.csv"),
        }
        return folder, tree, lists

    return write


@pytest.mark.parametrize("form", ["ids", "names"])
def test_a_set_of_the_form_on_the_hub_gives_the_same_targets(module, hub, form, caplog):
    folder, tree, lists = hub(
        (lambda label: label) if form == "ids" else lambda label: fake.DESCRIPTIONS[label].upper()
    )
    data = module(folder, **lists)
    expected = LABELS if form == "ids" else [*fake.TRAINABLE, "/m/0tree", "/g/11sky"]
    assert data.label_ids == expected
    for split in ("train", "validation", "test"):
        rows = data.dataset(split)
        naive = fake.naive_targets(fake.annotations(tree, split), expected)
        if form == "names":  # the two banks cannot be told apart
            naive = {image: [*row[:2], -1, *row[3:]] for image, row in naive.items()}
        assert fake.targets(rows, expected) == naive
        assert rows[0]["image"].size == (40, 30)
    assert ("2 labels of the train split have a name that several classes share" in caplog.text) == (form == "names")
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 48, 48)
    again = module(folder, **lists)
    assert fake.targets(again.dataset("test"), expected) == naive
    assert len(module(folder, validation_size=1, **lists).dataset("train")) == 3


def test_classes_come_from_the_rows_where_no_list_is_given(module, hub):
    folder, _, _ = hub(lambda label: f"{fake.DESCRIPTIONS[label]} {label}")
    data = module(folder, min_train_images=2)
    assert data.vocabulary.seen == ("Dog /m/0dog",)
    assert data.vocabulary.unseen[:2] == ("Bank /m/0bank2", "Tree /m/0tree")
    with pytest.raises(UserError, match=r"no label is present in 101 training images"):
        _ = module(folder).vocabulary


def test_machine_ids_need_names(module, hub):
    folder, _, _ = hub()
    with pytest.raises(UserError, match=r"labels such as /g/11sky are machine ids; give their names"):
        _ = module(folder, min_train_images=1).vocabulary


def test_a_stream_gives_the_same_targets(module, hub, tmp_path):
    folder, tree, lists = hub()
    (tmp_path / "unseen.txt").write_text("\n".join(fake.UNSEEN))
    data = module(folder, streaming=True, streamed_rows=4, unseen_file=str(tmp_path / "unseen.txt"), **lists)
    data.prepare_data()
    for split in ("train", "test"):
        rows = list(data.dataset(split))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        assert fake.targets(columns, LABELS) == fake.naive_targets(fake.annotations(tree, split), LABELS)
    (batch,) = data.train_dataloader()
    assert batch["pixel_values"].shape == (4, 3, 48, 48)
    with pytest.raises(UserError, match=r"validation_size needs the rows on disk"):
        module(folder, streaming=True, validation_size=1, **lists).dataset("train")
    with pytest.raises(UserError, match=r"labels cannot be counted in a stream; give class_descriptions=FILE"):
        _ = module(folder, streaming=True, **lists).vocabulary


@pytest.mark.parametrize("streaming", [False, True])
def test_a_confidence_between_is_named_with_its_image(module, hub, tmp_path, streaming):
    folder, _, lists = hub(rows={**fake.ROWS, "test": [("c1", "/m/0tree", "1"), ("c2", "/m/0cat", "0.5")]})
    (tmp_path / "unseen.txt").write_text("/m/0tree\n")
    data = module(folder, streaming=streaming, unseen_file=str(tmp_path / "unseen.txt"), **lists)
    with pytest.raises(UserError, match=r"image c2 of the test split has a label of confidence 0.5"):
        list(data.dataset("test"))


def test_rows_of_another_form_are_described(module, hub, tmp_path):
    folder, _, lists = hub()
    other = datasets.Dataset.from_dict({"image_id": ["c1"], "labels": [["cat"]]})
    other.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    other.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    other.to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"needs the columns image, image_id and labels.*labels: list<"):
        module(folder, **lists).dataset("test")


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_named(module, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = module("nobody/such-set")
    with pytest.raises(UserError, match=r"nobody/such-set: train split of Open Images: no such folder, and it cannot"):
        _ = data.vocabulary
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"data/such-set: no such folder; root=FOLDER"):
        module("data/such-set")


def test_a_split_that_is_missing_is_named(module, hub):
    folder, _, lists = hub(rows={"train": fake.ROWS["train"], "test": fake.ROWS["test"]})
    with pytest.raises(UserError, match=r"no validation split, only train, test; download the whole set from https"):
        module(folder, **lists).dataset("validation")
