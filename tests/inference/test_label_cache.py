import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ovml import LabelVocabulary, OpenVocabularyModel, Tagger
from ovml.cli.main import main
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.inference import label_cache
from ovml.inference.label_cache import cached
from ovml.prompts import ContextPrompt, EnsemblePrompt, TemplatePrompt

LABELS = LabelVocabulary(("cat", "dog", "red car"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache that takes lists of any length."""
    monkeypatch.setenv("OVML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(label_cache, "LEAST_LABELS", 1)
    return tmp_path / "cache" / "label_embeddings"


class Model(OpenVocabularyModel):
    """A model with a cache that counts how often its prompt embeds labels."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.embedded = 0

        def counting(embed, prompt, vocabulary):
            def counted():
                self.embedded += 1
                return embed()

            return cached(counted, prompt, vocabulary)

        self.label_cache = counting


def said(capsys):
    """Lines of ovml's own on the error stream."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ovml: ")]


def files(folder):
    return sorted(folder.glob("*"))


def test_labels_are_embedded_once_for_all_processes(tiny, folder):
    torch.manual_seed(0)
    plain = OpenVocabularyModel(tiny, LABELS).embed_labels()
    first, second = Model(tiny, LABELS), Model(tiny, LABELS)
    assert torch.equal(first.embed_labels(), plain)
    assert torch.equal(second.embed_labels(), plain)
    assert (first.embedded, second.embedded) == (1, 0)
    assert len(files(folder)) == 1
    assert not second.embed_labels().requires_grad


def changed_weight(model):
    model.prompt.text_encoder.text_projection.weight.data[0, 0] += 1e-6


def changed_context(model):
    model.prompt.context.data[0, 0] += 1e-6


def other_activation(model):
    model.prompt.text_encoder.text_model.config.hidden_act = "gelu_new"


def half(model):
    model.set_precision(torch.bfloat16)


@pytest.mark.parametrize("change", [changed_weight, changed_context, other_activation, half])
def test_another_model_finds_nothing(tiny, folder, change):
    Model(tiny, LABELS).embed_labels()
    other = Model(tiny, LABELS)
    change(other)
    other.embed_labels()
    assert other.embedded == 1
    assert len(files(folder)) == 2


def test_other_labels_texts_and_prompts_find_nothing(tiny, folder, tmp_path):
    descriptions = tmp_path / "descriptions.json"

    def of_file(text):
        descriptions.write_text(f'{{"cat": ["{text}"]}}')
        return EnsemblePrompt(descriptions=str(descriptions))

    asked = [
        (LABELS, None),
        (LabelVocabulary(("dog", "cat", "red car")), None),
        (LabelVocabulary(("cat", "dog", "red car"), texts=("cat", "dog", "car")), None),
        (LABELS, ContextPrompt("a {}")),
        (LABELS, TemplatePrompt("a {}")),
        (LABELS, TemplatePrompt(["a {}", "the {}"])),
        (LABELS, of_file("has fur")),
        (LABELS, of_file("has paws")),
    ]
    for number, (labels, prompt) in enumerate(asked, start=1):
        model = Model(tiny, labels, prompt=prompt)
        model.embed_labels()
        assert model.embedded == 1
        assert len(files(folder)) == number


def test_another_tokenizer_finds_nothing(tiny, folder):
    Model(tiny, LABELS).embed_labels()
    tokenizer = load_tokenizer(tiny)
    backend = tokenizer.backend_tokenizer
    tokenizer._tokenizer = backend.from_str(swap_tokens(backend.to_str()))
    other = Model(load_clip(tiny), LABELS, tokenizer=tokenizer)
    other.embed_labels()
    assert other.embedded == 1


def swap_tokens(text):
    """The tokenizer with the ids of two letters exchanged."""
    content = json.loads(text)
    words = content["model"]["vocab"]
    words["c</w>"], words["d</w>"] = words["d</w>"], words["c</w>"]
    return json.dumps(content)


class Shouting(TemplatePrompt):
    """A prompt whose code may change from one run to the next."""

    def embed(self, names):
        return super().embed(tuple(name.upper() for name in names))


def test_prompts_of_others_are_not_kept(tiny, folder):
    model = Model(tiny, LABELS, prompt=Shouting("a {}"))
    model.embed_labels()
    assert model.embedded == 1
    assert not folder.exists()


def test_short_lists_are_not_kept(tiny, folder, monkeypatch):
    monkeypatch.setattr(label_cache, "LEAST_LABELS", 4)
    Model(tiny, LABELS).embed_labels()
    assert not folder.exists()


def damage_numbers(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def empty(path):
    path.write_bytes(b"")


def foreign(path):
    save_file({"label_embeds": torch.zeros(3, 16)}, path)


def of_another_key(path):
    (other,) = (found for found in path.parent.iterdir() if found != path)
    shutil.copy(other, path)


@pytest.mark.parametrize("damage", [damage_numbers, cut, empty, foreign, of_another_key])
def test_a_damaged_file_is_ignored_said_and_replaced(tiny, folder, damage, capsys):
    Model(tiny, ["a", "b", "c"]).embed_labels()
    (before,) = files(folder)
    plain = Model(tiny, LABELS).embed_labels()
    (path,) = (found for found in files(folder) if found != before)
    capsys.readouterr()
    damage(path)
    model = Model(tiny, LABELS)
    assert torch.equal(model.embed_labels(), plain)
    assert model.embedded == 1
    (line,) = said(capsys)
    assert line.startswith(f"ovml: {path}: no cached label embeddings (")
    again = Model(tiny, LABELS)
    assert torch.equal(again.embed_labels(), plain)
    assert again.embedded == 0
    assert not said(capsys)


def test_the_files_used_last_stay(tiny, folder, monkeypatch):
    lists = [["a", "b"], ["c", "d"], ["e", "f"]]
    for labels in lists[:2]:
        Model(tiny, labels).embed_labels()
    size = files(folder)[0].stat().st_size
    (folder / "notes.txt").write_text("x" * 10 * size)
    monkeypatch.setattr(label_cache, "MOST_BYTES", 2 * size + 10)
    for path in folder.glob("*.safetensors"):
        os.utime(path, (1, 1))
    Model(tiny, lists[0]).embed_labels()  # is used, so the other one goes
    Model(tiny, lists[2]).embed_labels()
    assert len(list(folder.glob("*.safetensors"))) == 2
    found = [Model(tiny, labels) for labels in (lists[0], lists[2], lists[1])]
    for model in found:
        model.embed_labels()
    assert [model.embedded for model in found] == [0, 0, 1]
    assert (folder / "notes.txt").exists()
    monkeypatch.setattr(label_cache, "MOST_BYTES", 10)
    before = files(folder)
    Model(tiny, ["g", "h"]).embed_labels()  # larger than the cache
    assert files(folder) == before


def test_a_folder_that_cannot_be_used_is_said(tiny, folder, capsys):
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    model = Model(tiny, LABELS)
    assert model.embed_labels().shape[0] == 3
    (line,) = said(capsys)
    assert "OVML_CACHE names another folder" in line


def test_commands_use_the_cache_unless_told_not_to(tiny, folder, picture, capsys):
    command = ["tag", str(picture), "--labels", "cat,dog", "--model", str(tiny)]
    assert main([*command, "--no-cache"]) == 0
    plain = capsys.readouterr().out
    assert not folder.exists()
    for _ in range(2):
        assert main(command) == 0
        assert capsys.readouterr().out == plain
        assert len(files(folder)) == 1
    assert main(["explain", str(picture), *command[2:], "--out", str(folder.parent / "why.png")]) == 0
    assert len(files(folder)) == 1


def test_tags_are_the_same_from_the_cache(tiny, folder, picture):
    plain = Tagger(OpenVocabularyModel(tiny, LABELS)).predict(picture)
    for _ in range(2):
        assert Tagger(Model(tiny, LABELS)).predict(picture) == plain
