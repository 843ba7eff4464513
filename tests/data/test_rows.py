"""Broken pictures, streams, and every evaluation picture exactly once."""

import io
import logging
import zipfile
from types import SimpleNamespace

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from ovml.data import MultiLabelDataModule
from ovml.data.cache import FEATURES
from ovml.data.rows import RowReader, TensorRows, TensorStream, collate, read_image
from ovml.data.samplers import NO_ROW, EvalSampler, TrainSampler
from ovml.utils.errors import UserError, one_line
from ovml.vocabulary import LabelVocabulary


def encoded(value):
    buffer = io.BytesIO()
    Image.new("L", (20, 20), value).save(buffer, "PNG")
    return buffer.getvalue()


def rows(broken=(), size=6):
    """Row i is a grey picture of value i; broken ones are cut off."""
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": encoded(i)[: 45 if i in broken else None], "path": f"p{i}.png"} for i in range(size)],
            "positive": [[i % 3] for i in range(size)],
            "negative": [[] for _ in range(size)],
            "image_id": [f"p{i}" for i in range(size)],
        },
        features=FEATURES,
    )


def value(image):
    return torch.full((1,), float(image.getpixel((0, 0))[0]))


READER = RowReader(value, 3, exhaustive=True)


class Greys(MultiLabelDataModule):
    """The rows as a data module."""

    rows = rows()

    @property
    def vocabulary(self):
        return LabelVocabulary(("a", "b"), ("c",))

    def dataset(self, split):
        return self.rows


@given(size=st.integers(0, 40), world=st.integers(1, 5))
def test_every_evaluation_row_is_read_exactly_once(size, world):
    samplers = [EvalSampler(range(size), world, rank) for rank in range(world)]
    drawn = [list(sampler) for sampler in samplers]
    assert [len(part) for part in drawn] == [len(sampler) for sampler in samplers]
    assert all(drawn), "a process without a batch leaves the others waiting"
    assert sorted(index for part in drawn for _, index in part if index != NO_ROW) == list(range(size))


def test_a_process_without_a_row_has_an_empty_batch():
    source = TensorRows(rows(size=1), READER)
    (keys,) = torch.utils.data.BatchSampler(EvalSampler(source, 2, 1), 4, drop_last=False)
    assert collate(source.__getitems__(keys))["image_id"] == []


@given(size=st.integers(1, 40), world=st.integers(1, 5), epoch=st.integers(0, 3))
def test_training_gives_every_process_as_many_rows(size, world, epoch):
    samplers = [TrainSampler(range(size), world, rank, shuffle=True, seed=1) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    drawn = [list(sampler) for sampler in samplers]
    assert len({len(part) for part in drawn}) == 1
    assert {index for part in drawn for _, index in part} == set(range(size))
    assert {e for part in drawn for e, _ in part} == {epoch}


def test_a_broken_picture_in_training_is_replaced_the_same_way_every_time():
    source = TensorRows(rows(broken=[2]), READER, "replace")
    first, again = source[3, 2], source[3, 2]
    assert first["image_id"] == again["image_id"] != "p2"
    assert float(first["pixel_values"]) == int(first["image_id"][1:])
    assert first["labels"].argmax() == int(first["image_id"][1:]) % 3
    assert len(first["broken"]) == 1
    assert "p2.png: broken image" in first["broken"][0]
    replacements = {source[epoch, 2]["image_id"] for epoch in range(20)}
    assert len(replacements) > 1
    assert source[0, 1]["broken"] == []


def test_a_set_of_broken_pictures_is_an_error():
    source = TensorRows(rows(broken=range(6)), READER, "replace")
    with pytest.raises(UserError, match=r"20 images in a row cannot be read; the first: p1.png"):
        source[0, 1]


def test_a_broken_picture_in_evaluation_stops_or_is_left_out():
    with pytest.raises(UserError, match=r"p2.png: broken image"):
        TensorRows(rows(broken=[2]), READER)[0, 2]
    source = TensorRows(rows(broken=[2, 3]), READER, "skip")
    batch = collate(source.__getitems__([(0, 1), (0, 2), (0, 3), (0, 4)]))
    assert batch["image_id"] == ["p1", "p4"]
    assert batch["pixel_values"].tolist() == [[1.0], [4.0]]
    assert len(batch["broken"]) == 2
    assert collate(source.__getitems__([(0, 2)]))["image_id"] == []


def test_broken_pictures_are_logged_once_and_counted(tiny, caplog):
    data = Greys(clip=tiny, batch_size=3)
    data.rows = rows(broken=[0, 4])
    with caplog.at_level(logging.WARNING, "ovml"):
        for epoch in range(2):
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                assert len(batch["image_id"]) == 3
                assert "broken" not in data.on_before_batch_transfer(batch, 0)
    assert {message.split(":")[0] for message in data.broken} == {"p0.png", "p4.png"}
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_broken_pictures_of_an_evaluation_are_skipped_where_it_is_asked_for(tiny, streamed):
    broken = rows(broken=[2, 3])
    for skip_broken in (True, False):
        data = Greys(clip=tiny, batch_size=3, skip_broken=skip_broken)
        data.rows = broken.to_iterable_dataset() if streamed else broken
        if skip_broken:
            ids = [i for batch in data.val_dataloader() for i in batch["image_id"]]
            assert ids == ["p0", "p1", "p4", "p5"]
        else:
            with pytest.raises(UserError, match=r"p2\.png: broken image"):
                list(data.val_dataloader())


def test_what_became_of_a_broken_picture_is_said(tiny, caplog):
    data = Greys(clip=tiny)
    for training, said in ((True, "a (replaced by another image)"), (False, "b (skipped)")):
        data.trainer = SimpleNamespace(training=training)
        with caplog.at_level(logging.WARNING, "ovml"):
            data.on_before_batch_transfer({"broken": [said[0]]}, 0)
        assert caplog.messages[-1] == said


def test_an_error_in_a_worker_is_still_one_line(tiny):
    data = Greys(clip=tiny, batch_size=2, num_workers=1)
    data.rows = rows(broken=[5])
    with pytest.raises(UserError) as caught:
        list(data.val_dataloader())
    assert one_line(caught.value).startswith("p5.png: broken image")


def test_pictures_are_read_from_bytes_paths_and_images(picture):
    plain = Image.open(picture).convert("RGB")
    for source in ({"bytes": picture.read_bytes(), "path": None}, {"bytes": None, "path": str(picture)}, plain):
        assert read_image(source, "x").tobytes() == plain.tobytes()
    with pytest.raises(UserError, match="x7: the row holds no image"):
        read_image({"bytes": None, "path": None}, "x7")


def test_pictures_in_archives_start_no_program(picture, tmp_path, monkeypatch):
    import PIL.EpsImagePlugin

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("a program is started"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(picture, "a.jpg")
        archive.writestr("b.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n%%EOF\n")
    place = f"::{tmp_path / 'a.zip'}"
    found = read_image({"bytes": None, "path": f"zip://a.jpg{place}"}, "x")
    assert found.tobytes() == Image.open(picture).convert("RGB").tobytes()
    for name, reason in {"b": "not an image that Pillow can read", "c": "cannot be read"}.items():
        with pytest.raises(UserError, match=f"^zip://{name}.jpg{place}: {reason}"):
            read_image({"bytes": None, "path": f"zip://{name}.jpg{place}"}, "x")


def stream(size=12, shards=4, **kwargs):
    return TensorStream(rows(size=size).to_iterable_dataset(num_shards=shards), READER, **kwargs)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_read_exactly_once(world, workers):
    seen = []
    for rank in range(world):
        loader = torch.utils.data.DataLoader(
            stream(rank=rank, world_size=world), batch_size=5, collate_fn=collate, num_workers=workers
        )
        seen += [i for batch in loader for i in batch["image_id"]]
    assert sorted(seen) == sorted(f"p{i}" for i in range(12))


def draw(image):
    return torch.rand(1)


def test_no_two_rows_of_a_stream_draw_the_same_numbers():
    """Over workers, processes and epochs; and an epoch draws the same again."""
    reader, drawn = RowReader(draw, 3, exhaustive=True), []
    for epoch in (0, 1, 1):
        for rank in range(2):
            source = TensorStream(rows(size=12).to_iterable_dataset(num_shards=4), reader, rank=rank, world_size=2)
            source.set_epoch(epoch)
            loader = torch.utils.data.DataLoader(source, batch_size=2, collate_fn=collate, num_workers=2)
            drawn.append([float(value) for batch in loader for value in batch["pixel_values"]])
    assert len({value for part in drawn[:4] for value in part}) == 24
    assert drawn[2:4] == drawn[4:]


def test_drawing_leaves_the_generator_as_it_was():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    source = TensorRows(rows(), RowReader(draw, 3, exhaustive=True))
    first = [float(source[0, i]["pixel_values"]) for i in range(6)]
    assert len(set(first)) == 6
    assert torch.equal(torch.get_rng_state(), state)


def test_a_label_that_is_listed_both_ways_is_present():
    assert RowReader(value, 3, exhaustive=False).targets([1], [1, 2]).tolist() == [-1, 1, 0]


def test_a_training_stream_has_a_length_and_an_order_of_its_own():
    source = stream(buffer_size=6, epoch_size=5)
    assert len(source) == 5

    def order(epoch):
        source.set_epoch(epoch)
        return [row["image_id"] for row in source]

    assert len(order(0)) == 5
    assert order(1) == order(1)
    assert len({tuple(order(epoch)) for epoch in range(5)}) > 1
    assert len(list(stream(size=3, shards=1, epoch_size=8))) == 8
    with pytest.raises(TypeError, match="unknown length"):
        len(stream())


def test_a_broken_picture_in_a_training_stream_makes_way_for_the_next():
    source = TensorStream(rows(broken=[1]).to_iterable_dataset(), READER, "replace", epoch_size=4)
    items = list(source)
    assert [item["image_id"] for item in items] == ["p0", "p2", "p3", "p4"]
    assert [len(item["broken"]) for item in items] == [0, 1, 0, 0]


def test_streamed_training_needs_its_number_of_rows(tiny):
    data = Greys(clip=tiny)
    data.rows = rows().to_iterable_dataset()
    with pytest.raises(UserError, match="streamed_rows"):
        data.train_dataloader()
    data.streamed_rows = 4
    assert len(data.train_dataloader()) == 1
    assert sum(len(batch["image_id"]) for batch in data.val_dataloader()) == 6


def test_a_trainer_gives_every_epoch_of_a_stream_its_own_order(tiny):
    class Reader(LightningModule):
        automatic_optimization = False
        orders: tuple = ()

        def on_train_epoch_start(self):
            self.orders = (*self.orders, [])

        def training_step(self, batch, batch_idx):
            self.orders[-1].extend(batch["image_id"])

        def configure_optimizers(self):
            return None

    data = Greys(clip=tiny, batch_size=2)
    data.rows, data.streamed_rows = rows(size=12).to_iterable_dataset(num_shards=3), 12
    reader = Reader()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(max_epochs=3, accelerator="cpu", limit_val_batches=0, **quiet).fit(reader, datamodule=data)
    assert len({tuple(order) for order in reader.orders}) == 3
    assert all(sorted(order) == sorted(f"p{i}" for i in range(12)) for order in reader.orders)
