"""What a batch of tagging costs beside the model: what waits for the device, and what goes there and back."""

import threading

import numpy as np
import pytest
import torch
from devices import DEVICE, PretendedDevice, is_there
from PIL import Image

from ovml import OpenVocabularyModel, Tagger, UserError
from ovml.heads import LocalHead
from ovml.inference.batches import OnItsWay, one_ahead
from ovml.inference.tagger import default_batch_size

NAMES = [f"label {number}" for number in range(40)]
WAIT = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__iter__", "nonzero"}
"""Functions of tensors on a device that wait for it."""


class Counting(PretendedDevice):
    """Counts what waits for the device, and what is moved there and back."""

    def __init__(self):
        super().__init__()
        self.waits, self.back, self.there = [], [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        was_there = tensor is not None and is_there(tensor)
        result = super().__torch_function__(func, types, args, kwargs)
        if was_there and name in WAIT:
            self.waits.append(name)
        if name == "to" and tensor is not None and was_there != is_there(result):
            (self.back if was_there else self.there).append(tensor)
        return result


@pytest.fixture
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(12)]


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return OpenVocabularyModel(tiny, NAMES, head=LocalHead(top_k=2)).eval()


@pytest.mark.parametrize("options", [{}, {"exclusive": [NAMES[:3], NAMES[3:5]]}, {"floor": ["image"]}])
def test_a_batch_reads_its_best_labels_and_no_more_from_the_device(model, pictures, options):
    with Counting() as counted:
        tagger = Tagger(model.to(DEVICE), batch_size=4, num_workers=0, **options)
        assert model.device == DEVICE
        list(tagger.tag(pictures[:4]))  # what is done once
        counted.waits, counted.back, counted.there = [], [], []
        list(tagger.tag(pictures))
    assert not counted.waits
    assert [list(tensor.shape) for tensor in counted.back] == [
        [4, 5 + 5 + 1]
    ] * 3  # scores, columns, whether all are numbers
    assert [(list(tensor.shape), tensor.dtype) for tensor in counted.there] == [([4, 3, 48, 48], torch.uint8)] * 3


def test_the_next_batch_is_launched_before_one_is_read(model, pictures, monkeypatch):
    plain = list(Tagger(model, batch_size=4).tag(pictures))
    happened = []
    encode, arrived = model.encode_images, OnItsWay.arrived
    monkeypatch.setattr(model, "encode_images", lambda pixels: happened.append("launch") or encode(pixels))
    monkeypatch.setattr(OnItsWay, "arrived", lambda self: happened.append("read") or arrived(self))
    tagger = Tagger(model, batch_size=4)
    tagger._launched_ahead = 1  # as on CUDA
    assert list(tagger.tag(pictures)) == plain
    assert happened == ["launch", "launch", "read", "launch", "read", "read"]


def test_no_batch_waits_for_the_next_on_a_cpu(model, pictures):
    tagged = Tagger(model, batch_size=4, num_workers=0).tag(iter(pictures))
    asked = []

    def stream():
        for number, picture in enumerate(pictures):
            asked.append(number)
            yield picture

    tagged = Tagger(model, batch_size=4, num_workers=0).tag(stream())
    next(tagged)
    assert len(asked) == 4
    tagged.close()


def test_errors_of_images_stay_in_their_place_when_batches_run_ahead(model, pictures):
    images = [*pictures[:3], b"no image", b"none either", b"nor this", *pictures[3:5]]
    expected = list(Tagger(model, batch_size=3).tag(images, on_error="row"))
    tagger = Tagger(model, batch_size=3)
    tagger._launched_ahead = 1
    tagged = list(tagger.tag(images, on_error="row"))
    assert [image for image, _ in tagged] == images
    for (_, found), (_, before) in zip(tagged, expected, strict=True):
        assert str(found) == str(before) if isinstance(before, UserError) else found == before
    threads = threading.active_count()
    with pytest.raises(UserError):
        list(tagger.tag(images))
    assert threading.active_count() <= threads


def test_scores_that_float16_cannot_hold_name_the_precision(model, pictures):
    model.set_precision(torch.float16)
    model.image_encoder.visual_projection.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="precision fp16: this model has numbers beyond its range; take bf16"):
        list(Tagger(model).tag(pictures[:1]))


def test_pieces_run_ahead_and_come_in_order():
    launched = []
    work = one_ahead(lambda piece: launched.append(piece) or -piece, range(4), 2)
    assert next(work) == (0, 0)
    assert launched == [0, 1, 2]
    assert list(work) == [(1, -1), (2, -2), (3, -3)]


def test_batches_fill_the_device():
    assert [default_batch_size(name) for name in ("cpu", "cuda", "cuda:1", "mps")] == [32, 256, 256, 32]
