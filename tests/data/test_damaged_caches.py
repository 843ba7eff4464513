"""A damaged cache of any data set is noticed and made again; what is read stays the same."""

import logging
import os

import datasets
import fake_json
import fake_openimages
import numpy as np
import pytest
from data import fake_nuswide
from test_hub import write_parquet

from ovml.data import DemoDataModule, HubDataModule, JSONDataModule, NUSWIDEDataModule, OpenImagesDataModule
from ovml.data.cache import SEAL


def json_files(root):
    arguments = fake_json.write_tree(root)
    return JSONDataModule, {**arguments, "cache_dir": None}


def nuswide_h5(root):
    pytest.importorskip("h5py")
    truth = fake_nuswide.make_truth()
    fake_nuswide.write_h5(root, truth)
    fake_nuswide.write_pictures(root, truth)
    return NUSWIDEDataModule, {"root": str(root)}


def openimages(root):
    return OpenImagesDataModule, {"root": str(fake_openimages.write(root)), "num_unseen": 3}


def hub(root):
    return HubDataModule, write_parquet(root)


def demo(root):
    return DemoDataModule, {"train_size": 3, "eval_size": 2}


def read(data):
    """All that a data set says."""
    rows = data.dataset("train"), data.dataset("test")
    return [data.vocabulary, *([r.cast_column("image", datasets.Image(decode=False))[:] for r in rows])]


def object_array(path):
    np.save(path.with_suffix(".npy"), np.array([{"code": 1}], dtype=object), allow_pickle=True)
    path.with_suffix(".npy").replace(path)


DAMAGES = {
    "gone": os.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "other": lambda path: path.write_text("[]"),
    "objects": object_array,
}


@pytest.mark.parametrize(
    ("make", "damages"),
    [(json_files, DAMAGES), *((make, ["gone", "half"]) for make in (nuswide_h5, openimages, hub, demo))],
)
def test_every_damage_of_every_file_is_mended(make, damages, tmp_path, tiny, caplog):
    (tmp_path / "set").mkdir()
    kind, arguments = make(tmp_path / "set")
    cache = tmp_path / "cache"
    arguments |= {"cache_dir": str(cache), "clip": tiny}
    first = read(kind(**arguments))
    files = {path.relative_to(cache) for path in cache.glob(f"*/{SEAL}")}
    files |= {path.relative_to(cache) for seal in files for path in (cache / seal).parent.iterdir()}
    assert len(files) >= 4
    for name in damages:
        for file in sorted(files):
            DAMAGES[name](cache / file)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ovml"):
                again = read(kind(**arguments))
            assert f"{cache / file.parent}: {file.name} is damaged or missing" in caplog.text, (name, file)
            assert again == first, (name, file)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ovml"):
        read(kind(**arguments))
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("name", ["gone", "empty", "half"])
def test_a_damaged_cache_of_datasets_is_prepared_again(name, tmp_path, tiny, caplog):
    arguments = {**write_parquet(tmp_path / "set"), "cache_dir": str(tmp_path / "cache"), "clip": tiny}
    first = read(HubDataModule(**arguments))
    (file,) = (tmp_path / "cache").rglob("*-train.arrow")
    DAMAGES[name](file)
    with caplog.at_level(logging.WARNING, "ovml"):
        assert read(HubDataModule(**arguments)) == first
    assert "so it is prepared again" in caplog.text
