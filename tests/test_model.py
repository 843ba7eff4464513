"""OpenVocabularyModel: what needs no Lightning."""

import json
import subprocess
import sys

import pytest
import torch

from ovml import LabelVocabulary, OpenVocabularyModel, OVMultiLabelClassifier, UserError, load_model
from ovml.encoders.adapters import Ladder, LoRA, VisualPrompts, without_adapters
from ovml.encoders.image_processor import Preprocessing
from ovml.heads import GlobalHead, LocalHead
from ovml.saving import save_model

LABELS = {"seen": ["cat", "dog"], "unseen": ["black cat"]}
PIXELS = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
ALONE = """
import json, sys, tempfile
from pathlib import Path
from PIL import Image
from ovml import OpenVocabularyModel, Tagger, load_model
from ovml.inference.explain import explain
from ovml.inference.export import export_model
from ovml.saving import save_model

image, folder = Image.new("RGB", (60, 50), "teal"), Path(tempfile.mkdtemp())
save_model(OpenVocabularyModel(sys.argv[1], ["cat", "dog"]), folder / "saved")
model = load_model(folder / "saved")
tags = Tagger(model, ["cat", "a fish"]).predict(image)
drawn = explain(model, image, ["cat", "a fish"])
exported = export_model(model, folder / "model.pt2")
print(json.dumps([len(tags), drawn.mode, exported.path.name, sorted({m.partition(".")[0] for m in sys.modules})]))
"""


def test_it_is_saved_loaded_tags_explains_and_exports_without_lightning(tiny):
    done = subprocess.run([sys.executable, "-c", ALONE, tiny], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    number, mode, name, modules = json.loads(done.stdout.splitlines()[-1])
    assert (number, mode, name) == (2, "RGB", "model.pt2")
    assert not {"lightning", "torchmetrics", "datasets", "matplotlib", "jsonargparse"} & set(modules)


def test_a_classifier_scores_as_its_model(tiny):
    classifier = OVMultiLabelClassifier(tiny, LABELS).eval()
    with torch.no_grad():
        assert torch.equal(classifier(PIXELS), classifier.model(PIXELS))
        assert torch.equal(classifier(PIXELS, ["sky"]), OpenVocabularyModel(tiny).eval()(PIXELS, ["sky"]))


def test_a_model_is_trained_as_it_is(tiny):
    model = OpenVocabularyModel(tiny, LABELS, head=LocalHead(2))
    classifier = OVMultiLabelClassifier(model)
    assert classifier.model is model
    assert [type(part) for part in (classifier.learning_parts.head, classifier.stages[0])] == [
        LocalHead,
        type(classifier.stage),
    ]


def test_forward_is_encode_embed_and_score(tiny):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    with torch.no_grad():
        features, embeds = model.encode_images(PIXELS), model.embed_labels()
        assert features.patch_embeds.shape == (2, 16, model.embed_dim)
        assert embeds.shape == (3, model.embed_dim)
        assert torch.equal(model(PIXELS), model.score(features, embeds))
    assert model.vocabulary == LabelVocabulary(("cat", "dog"), ("black cat",))
    with pytest.raises(UserError, match="labels: none given"):
        OpenVocabularyModel(tiny)(PIXELS)


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_float32_under_autocast(tiny, autocast):
    model = OpenVocabularyModel(tiny, LABELS).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model.encode_images(PIXELS).global_embeds.dtype == (torch.bfloat16 if autocast else torch.float32)
        assert model(PIXELS).dtype == torch.float32


@pytest.mark.parametrize("adapter", [LoRA(2, 4), VisualPrompts(2, 3), Ladder(2, 1)], ids=repr)
def test_an_adapter_is_attached_once_and_can_be_undone(tiny, adapter):
    pytest.importorskip("peft") if isinstance(adapter, LoRA) else None
    model, plain = OpenVocabularyModel(tiny, LABELS, adapters=[adapter]), OpenVocabularyModel(tiny, LABELS)
    names = set(model.state_dict())
    model.add_adapter(type(adapter)(**adapter.init_args()))
    assert len(model.adapters) == 1
    assert set(model.state_dict()) == names
    assert adapter.parameters(model.image_encoder)
    assert set(without_adapters(model.image_encoder).state_dict()) == set(plain.image_encoder.state_dict())


@pytest.mark.parametrize("adapters", [[], [VisualPrompts(1, 2)], [Ladder(2, 2, 3)]], ids=repr)
def test_a_saved_model_loads_to_the_last_bit(tiny, tmp_path, adapters):
    preprocessing = Preprocessing(resize=60, mean=(0.1, 0.2, 0.3))
    model = OpenVocabularyModel(tiny, LABELS, GlobalHead(), adapters=adapters, preprocessing=preprocessing).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(PIXELS), model(PIXELS))
    assert (again.image_processor, again.vocabulary) == (model.image_processor, model.vocabulary)
    assert list(map(repr, again.adapters)) == list(map(repr, model.adapters))
    assert not any(parameter.requires_grad for parameter in again.image_encoder.parameters())
    with torch.no_grad():  # labels and parts may be replaced
        assert torch.equal(load_model(tmp_path / "saved", labels=["sky"])(PIXELS), model(PIXELS, ["sky"]))
    assert load_model(tmp_path / "saved", head=LocalHead(3)).head.top_k == 3
