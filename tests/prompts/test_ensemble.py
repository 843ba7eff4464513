import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ovml import OVMultiLabelClassifier, UserError
from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.prompts import EnsemblePrompt, PromptLearner, TemplatePrompt
from ovml.prompts.ensemble import GENERAL_TEMPLATES
from ovml.utils.parts import describe
from ovml.vocabulary import LabelVocabulary

TEMPLATES = ["a {} x", "{} in b", "no {}"]
DESCRIPTIONS = {"cat": ["four legs", "whiskers"], "Black  Dog": ["a tail"]}


@pytest.fixture(scope="module")
def encoder(tiny):
    return TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny), batch_size=4)


def plain(encoder, sentences, normalize):
    """The mean of normalised embeddings, sentence by sentence."""
    mean = sum(F.normalize(encoder([text])[0], dim=-1) for text in sentences) / len(sentences)
    return mean / mean.norm() if normalize else mean


@pytest.mark.parametrize("normalize", [True, False])
def test_templates_and_descriptions_in_a_plain_loop(encoder, normalize):
    names = ("zebra", "cat", "black dog", "a")
    prompt = EnsemblePrompt(TEMPLATES, DESCRIPTIONS, normalize=normalize).bind(encoder)
    sentences = {
        "zebra": ["a zebra x", "zebra in b", "no zebra"],
        "cat": ["cat, which has four legs", "cat, which has whiskers"],
        "black dog": ["black dog, which has a tail"],
        "a": ["a a x", "a in b", "no a"],
    }
    assert {name: prompt.sentences(name) for name in names} == sentences
    with torch.no_grad():
        expected = torch.stack([plain(encoder, sentences[name], normalize) for name in names])
        torch.testing.assert_close(prompt(names), expected, atol=1e-6, rtol=0)


@settings(max_examples=5)
@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from("uvwxyz"), min_size=1, max_size=4)))
def test_the_mean_similarity_is_the_dot_product_with_the_mean(encoder, descriptions):
    """Menon and Vondrick's score, a mean over descriptions, against the one embedding of `normalize=False`."""
    names = list("abc")
    prompt = EnsemblePrompt(TEMPLATES, descriptions, normalize=False).bind(encoder)
    image = F.normalize(torch.randn(encoder.embed_dim, generator=torch.Generator().manual_seed(0)), dim=0)
    with torch.no_grad():
        scores = [F.cosine_similarity(encoder(prompt.sentences(name)), image[None], dim=-1).mean() for name in names]
        torch.testing.assert_close(prompt(names) @ image, torch.stack(scores), atol=1e-6, rtol=0)


def test_every_sentence_weighs_the_same_unlike_in_a_mean_of_plain_embeddings(encoder):
    with torch.no_grad():
        ensemble, mean = EnsemblePrompt(TEMPLATES).bind(encoder), TemplatePrompt(TEMPLATES).bind(encoder)
        one = EnsemblePrompt(["a {}"]).bind(encoder)(["cat"])
        assert not torch.allclose(ensemble(["cat"]), F.normalize(mean(["cat"]), dim=-1), atol=1e-4)
        torch.testing.assert_close(one, F.normalize(TemplatePrompt("a {}").bind(encoder)(["cat"]), dim=-1))


def test_all_labels_run_in_one_call_of_full_batches(tiny, monkeypatch):
    encoder = TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny), batch_size=64)
    sizes, calls, encode, tokenize = [], [], encoder.encode, encoder.tokenize
    monkeypatch.setattr(encoder, "encode", lambda *args: sizes.append(len(args[0])) or encode(*args))
    monkeypatch.setattr(encoder, "tokenize", lambda texts: calls.append(len(texts)) or tokenize(texts))
    names = [f"{a}{b}" for a in "abcdefgh" for b in "klmnopqrst"]
    EnsemblePrompt(TEMPLATES, {"ak": ["q"]}).bind(encoder)(names)
    assert calls == [79 * 3 + 1]
    assert sizes == [64, 64, 64, 46]


def test_the_shipped_templates(encoder):
    assert len(set(GENERAL_TEMPLATES)) == 20
    demo = TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo"))
    assert EnsemblePrompt().templates == list(GENERAL_TEMPLATES)
    with torch.no_grad():
        assert EnsemblePrompt().bind(demo)(["red circle", "black arrow"]).isfinite().all()
    assert EnsemblePrompt().bind(encoder).learned_parameters() == []


def test_labels_that_share_a_text(encoder):
    vocabulary = LabelVocabulary.from_ids(["/m/1", "/m/2"], [], {"/m/1": "cat", "/m/2": "Cat"})
    embeds = EnsemblePrompt(TEMPLATES, DESCRIPTIONS, sentence="{description}").bind(encoder)(vocabulary)
    assert torch.equal(embeds[0], embeds[1])


def test_half_precision(tiny):
    tower = TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny))
    prompt = EnsemblePrompt(TEMPLATES, DESCRIPTIONS).bind(tower)
    expected = prompt(["cat", "a"])
    half = prompt.to(torch.bfloat16)(["cat", "a"])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0)


def test_synonyms_count_as_much_as_the_name(encoder):
    prompt = EnsemblePrompt(TEMPLATES, synonyms={"Cat": ["kitten", "tomcat"]})
    assert prompt.sentences("cat") == [t.replace("{}", n) for n in ("cat", "kitten", "tomcat") for t in TEMPLATES]
    assert prompt.sentences("dog") == [t.replace("{}", "dog") for t in TEMPLATES]
    plain = EnsemblePrompt(TEMPLATES, normalize=False).bind(encoder)
    with torch.no_grad():
        expected = F.normalize(plain(["cat", "kitten", "tomcat"]).mean(dim=0), dim=0)
        assert torch.allclose(prompt.bind(encoder)(["cat"])[0], expected, atol=1e-6)


def test_descriptions_and_synonyms_of_one_label():
    prompt = EnsemblePrompt(["a {}"], {"cat": ["paws"]}, "{name} with {description}", synonyms={"cat": ["kitten"]})
    assert prompt.sentences("cat") == ["cat with paws", "a kitten"]


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "text",
    [
        "cat,kitten,tomcat\nred car,automobile\n",
        "label,text\ncat,kitten\nred car,automobile\n\nCat,tomcat\n",
        "\ufeffname,synonyms\r\ncat,kitten,tomcat,\r\n'red car',automobile\r\n".replace("'", '"'),
    ],
)
def test_texts_of_labels_in_a_table(tmp_path, text):
    path = write(tmp_path / "synonyms.csv", text)
    assert EnsemblePrompt(synonyms=path).synonyms == {"cat": ["kitten", "tomcat"], "red car": ["automobile"]}
    assert EnsemblePrompt(descriptions=path).descriptions == {"cat": ["kitten", "tomcat"], "red car": ["automobile"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\n", ", key 'cat': expected a list of synonyms, none of them empty; got []"),
        (",kitten\n", ", key '': the name is empty"),
        ('cat,"kitten\n', ", line 1: unexpected end of data; check the quotes"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    path = write(tmp_path / "s.csv", content)
    one_line(lambda: EnsemblePrompt(synonyms=path), path + message)


def test_templates_that_ovml_ships_go_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    openai = EnsemblePrompt("openai.txt").templates
    assert len(set(openai)) == 80
    assert set(openai) < set(EnsemblePrompt("tagclip.txt").templates)
    write(tmp_path / "openai.txt", "my {}\n")
    assert EnsemblePrompt("openai.txt").templates == ["my {}"]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_files_are_read_once_and_kept(tiny, tmp_path):
    templates = write(tmp_path / "t.txt", "\ufeffa {} x\n\n  {} in b \n")
    descriptions = write(tmp_path / "d.json", json.dumps(DESCRIPTIONS))
    synonyms = write(tmp_path / "s.csv", "zebra,horse\n")
    prompt = EnsemblePrompt(templates, descriptions, "a {description}", normalize=False, synonyms=synonyms)
    assert prompt.templates == ["a {} x", "{} in b"]
    assert prompt.descriptions == DESCRIPTIONS
    model = OVMultiLabelClassifier(tiny, ["cat", "zebra"], prompt=prompt, stages=[]).eval()
    for file in tmp_path.iterdir():
        file.unlink()
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for labels in (None, ["black dog", "other"]):
            assert torch.equal(model(pixels, labels), again(pixels, labels))
    assert describe(again.model.prompt)["init_args"] == {
        "templates": ["a {} x", "{} in b"],
        "descriptions": DESCRIPTIONS,
        "sentence": "a {description}",
        "normalize": False,
        "synonyms": {"zebra": ["horse"]},
        "pool": "mean",
    }


def test_the_command_line_takes_files_and_lists(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--prompt", type=PromptLearner)
    templates = write(tmp_path / "t.txt", "a {} x\n")
    descriptions = write(tmp_path / "d.json", json.dumps(DESCRIPTIONS))
    path = "ovml.prompts.EnsemblePrompt"
    for arguments in (
        ["--prompt.templates", templates, "--prompt.descriptions", descriptions],
        ["--prompt.templates", '["a {} x"]', "--prompt.descriptions", json.dumps(DESCRIPTIONS)],
    ):
        made = parser.instantiate(parser.parse_args(["--prompt", path, *arguments])).prompt
        assert (made.templates, made.descriptions) == (["a {} x"], DESCRIPTIONS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a {}\n\na photo\n", ", line 3: template 'a photo' must hold {} exactly once"),
        ("a {}\n{} and {}", ", line 2: template '{} and {}' must hold"),
        ("\n \n", ": there is no template; give at least one"),
        (b"\xff\xfe{", ": not UTF-8 text; save the template file as UTF-8"),
    ],
)
def test_bad_template_files(tmp_path, content, message):
    path = write(tmp_path / "t.txt", content)
    one_line(lambda: EnsemblePrompt(path), path + message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ["b"],\n "c": }', ", line 2: not JSON (Expecting value); correct it"),
        ('["a"]', ": expected a JSON object {name: [description, ...]}"),
        ('{"cat": "legs"}', ", key 'cat': expected a list of descriptions, none of them empty; got 'legs'"),
        ('{"cat": []}', ", key 'cat': expected a list"),
        ('{"cat": {}}', ", key 'cat': expected a list"),
        ('{"cat": ["legs", " "]}', ", key 'cat': expected a list"),
        ('{"cat": ["legs", 3]}', ", key 'cat': expected a list"),
        ('{"cat": ["legs"], "dog": ["a"], "cat": ["tail"]}', ", key 'cat': the same name as 'cat'; keep one of them"),
        ('{"cat": ["legs"], " CAT": ["tail"]}', ", key ' CAT': the same name as 'cat'"),
        ('{" ": ["legs"]}', ", key ' ': the name is empty"),
        (b'{"a\xff": ["b"]}', ": not UTF-8 text; save the description file as UTF-8"),
    ],
)
def test_bad_description_files(tmp_path, content, message):
    path = write(tmp_path / "d.json", content)
    one_line(lambda: EnsemblePrompt(descriptions=path), path + message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnsemblePrompt("no/such.txt"), "no/such.txt: cannot read the template file (No such file"),
        (
            lambda: EnsemblePrompt(descriptions="no/such.json"),
            "no/such.json: cannot read the description file (No such",
        ),
        (lambda: EnsemblePrompt("a photo of a {}"), "is a template, not a file of them; write ['a photo of a {}']"),
        (lambda: EnsemblePrompt([]), "templates: there is no template"),
        (lambda: EnsemblePrompt(["a {}", "b"]), "templates, number 2: template 'b' must hold {} exactly once"),
        (lambda: EnsemblePrompt(descriptions={"a": []}), "descriptions, key 'a': expected a list of descriptions"),
        (lambda: EnsemblePrompt(pool="min"), "pool must be 'mean' or 'max'; got 'min'"),
        (lambda: EnsemblePrompt(sentence="{name}"), "sentence '{name}' must hold {description} once"),
        (lambda: EnsemblePrompt(sentence="{name} {name} {description}"), "{name} at most once"),
    ],
)
def test_wrong_settings(make, message):
    one_line(make, message)


def one_line(make, message):
    with pytest.raises(UserError) as info:
        make()
    assert message in str(info.value)
    assert "\n" not in str(info.value)


def test_a_sentence_too_long_is_named(encoder):
    with pytest.raises(UserError, match="label too long: 'cat, which has xxx"):
        EnsemblePrompt(TEMPLATES, {"cat": ["x" * 99]}).bind(encoder)(["cat", "dog"])
