"""Random damage to the files of a model: it loads and its scores are finite, or one line says what is wrong."""

import copy
import json
import shutil

import pytest
import torch
from checkpoints import save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from ovml import OVMultiLabelClassifier, UserError
from ovml.metrics.calibration import Calibration
from ovml.training import VisualPromptStage

PIXELS = torch.zeros(1, 3, 48, 48)
ODD = [-1, 0, 1, 2, 10**7, 10**30, 0.5, -1.5, float("nan"), float("inf"), "", "x", "a\nb", "../x", True, None, [], {}]
VALUES = st.sampled_from(ODD) | st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def classifier(tiny):
    stages = [VisualPromptStage(num_layers=1, num_prompts=2)]
    model = OVMultiLabelClassifier(tiny, {"seen": ["cat", "dog"], "unseen": ["black cat"]}, stages=stages, ks=[1])
    model.model.calibration = Calibration(3.0, -1.0, 0.3, model.model.vocabulary, (0.1, 0.2, 0.3))
    return model.eval()


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model"
    classifier.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "last.ckpt"
    save_checkpoint(classifier, path)
    return path


def nodes(tree, above=()):
    """Paths of all nodes of a tree of mappings and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*above, key)
        if isinstance(value, (dict, list)):
            yield from nodes(value, (*above, key))


def damage(data, tree):
    """Delete a random node, or replace it by a random value."""
    *above, last = data.draw(st.sampled_from(list(nodes(tree))), label="node")
    for key in above:
        tree = tree[key]
    if data.draw(st.integers(0, 5), label="delete?") == 0:
        del tree[last]
    else:
        tree[last] = data.draw(VALUES, label="value")


def check(name):
    try:
        model = OVMultiLabelClassifier.from_pretrained(name)
        labels = model.model.vocabulary or ["cat"]
        with torch.no_grad():
            scores = model(PIXELS, labels)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    assert scores.isfinite().all()
    if model.model.calibration is not None:
        assert model.model.calibration.probabilities(scores).isfinite().all()


@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "labels.json", "calibration.json", "tokenizer_config.json"]
)
def test_a_folder_loads_or_says_why(folder, tmp_path_factory, file):
    copied = shutil.copytree(folder, tmp_path_factory.mktemp("damaged") / "model")
    whole = json.loads((folder / file).read_text())

    @settings(max_examples=25)  # of five files
    @given(st.data())
    def run(data):
        tree = copy.deepcopy(whole)
        damage(data, tree)
        (copied / file).write_text(json.dumps(tree))
        check(copied)

    run()


def test_a_checkpoint_loads_or_says_why(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "last.ckpt"
    whole = torch.load(checkpoint, weights_only=True)

    @given(st.data())
    def run(data):
        content = {**whole, "ovml": copy.deepcopy(whole["ovml"])}
        damage(data, content["ovml"])
        torch.save(content, path)
        check(path)

    run()
