import pytest
import torch
from reference_clip import reference_clip, reference_tokenizer

from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.prompts import ContextPrompt, TemplatePrompt
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary


@pytest.fixture
def encoder(tiny):
    return TextEncoder(load_clip(tiny), load_tokenizer(tiny), batch_size=3)


@pytest.mark.parametrize("prompt", [TemplatePrompt(), ContextPrompt()])
def test_label_embeddings_agree_with_the_published_code(golden, golden_json, prompt):
    prompt.bind(TextEncoder(reference_clip(golden), reference_tokenizer()))
    with torch.no_grad():
        embeds = prompt(golden_json["prompt_labels"])
    torch.testing.assert_close(embeds, golden["prompt.label_embeds"], atol=1e-5, rtol=0)


def test_trained_context_keeps_the_labels_own_words(golden, golden_json):
    """The last label holds "the", a word of the template too: its own keeps the original embedding."""
    prompt = ContextPrompt().bind(TextEncoder(reference_clip(golden), reference_tokenizer()))
    after = dict(zip(golden["prompt.used_ids"].tolist(), golden["prompt.used_rows_after"], strict=True))
    with torch.no_grad():
        prompt.context.copy_(torch.stack([after[i] for i in prompt.context_ids.tolist()]))
        embeds = prompt(golden_json["prompt_labels"])
    torch.testing.assert_close(embeds, golden["prompt.label_embeds_after"], atol=1e-5, rtol=0)


def test_context_gradient_equals_training_the_whole_table(golden, golden_json):
    """The published way, written out: the table learns and name positions take a copy of the original."""
    clip, tokenizer = reference_clip(golden), reference_tokenizer()
    encoder = TextEncoder(clip.requires_grad_(False), tokenizer)
    prompt = ContextPrompt().bind(encoder)
    target = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    (prompt(golden_json["prompt_labels"]) * target).sum().backward()

    table = encoder.token_embedding.weight
    original = table.detach().clone()
    table.requires_grad_(True)
    ids = golden["prompt.token_ids"]
    lengths = (ids == 49407).int().argmax(dim=1) + 1
    embeds = table[ids]
    for row, length in enumerate(lengths.tolist()):
        embeds = embeds.clone()
        embeds[row, 4 : length - 4] = original[ids[row, 4 : length - 4]]
    (encoder.encode(embeds, lengths) * target).sum().backward()
    torch.testing.assert_close(prompt.context.grad, table.grad[prompt.context_ids], atol=1e-4, rtol=1e-4)
    others = torch.ones(len(table), dtype=torch.bool)
    others[prompt.context_ids] = False
    others[0] = False  # the published code pads with token 0, which the causal tower never sees
    assert not table.grad[others].any()


def test_several_templates_are_averaged(encoder):
    first, second = "a {} x", "{} in b"
    names = ["cat", "black dog"]
    with torch.no_grad():
        both = TemplatePrompt([first, second]).bind(encoder)(names)
        apart = [TemplatePrompt(t).bind(encoder)(names) for t in (first, second)]
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)


def test_untrained_context_is_the_template(encoder):
    names = ["cat", "black dog", "a", "the scene", "there is a cat in the scene"]
    with torch.no_grad():
        fixed, learned = (p.bind(encoder)(names) for p in (TemplatePrompt(), ContextPrompt()))
    torch.testing.assert_close(learned, fixed, atol=1e-6, rtol=0)


def test_only_the_context_learns(encoder):
    prompt = ContextPrompt().bind(encoder)
    assert prompt.learned_parameters() == [prompt.context]
    assert TemplatePrompt().bind(encoder).learned_parameters() == []


def test_vocabularies_and_lists_give_the_same(encoder):
    prompt = ContextPrompt().bind(encoder)
    assert torch.equal(prompt(["cat", "dog"]), prompt(LabelVocabulary(("cat",), ("dog",))))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the list is empty"),
        (["cat", " "], "name 2 is empty"),
        (["cat", "dog", "cat"], r"'cat' \(name 3\) is repeated \(name 1\)"),
        (["Black cat", "black  CAT"], "'Black cat' differ only in case or blanks"),
        (["cat", 3], "name 2 is 3; label names are strings"),
        ("cat", "the single string 'cat'"),
        (["cat", "x" * 99], "is 119 tokens, the text tower takes 77; shorten it"),
    ],
)
def test_bad_names_are_named(encoder, names, message):
    for prompt in (TemplatePrompt(), ContextPrompt()):
        with pytest.raises(UserError, match=message):
            prompt.bind(encoder)(names)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_templates_need_one_place_for_the_name(template):
    with pytest.raises(UserError, match="must hold {} exactly once"):
        ContextPrompt(template)
    with pytest.raises(UserError, match="must hold {} exactly once"):
        TemplatePrompt([template])
