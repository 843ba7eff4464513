"""Learned tokens in the last blocks of the text tower."""

import copy

import pytest
import torch
from encoders.test_siglip import letters, sizes
from ram_reference import RAMTokenizer, close, ram_clip
from torch.nn import functional as F
from transformers import SiglipModel

from ovml.encoders import SiglipTextEncoder, TextEncoder
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.encoders.execution import Execution
from ovml.prompts import DeepPrompt, TemplatePrompt
from ovml.utils.errors import UserError
from ovml.utils.parts import build, describe

NAMES = ("cat", "a very long name of a thing", "dog", "x" * 64)


@pytest.fixture
def names(ram_json):
    return [*ram_json["settings"]["seen"], *ram_json["settings"]["unseen"]]


@pytest.fixture
def reference(ram_golden, ram_json, names):
    clip = ram_clip(ram_golden, ram_json["settings"]).requires_grad_(False)
    encoder = TextEncoder(clip, RAMTokenizer(ram_golden, names))
    blocks = ram_json["settings"]["text_layers_with_tokens"]
    prompt = DeepPrompt(num_layers=len(blocks), num_tokens=ram_json["settings"]["text_tokens"]).bind(encoder)
    prompt.tokens.data.copy_(torch.stack([ram_golden[f"tokens.text.{block}"] for block in blocks]))
    return prompt


def test_texts_are_the_reference_s(reference, names, ram_golden):
    ids, _ = reference.text_encoder.tokenize([f"A photo of a {name}." for name in names])
    padded = [row + [0] * (77 - len(row)) for row in ids]
    assert padded == ram_golden["text.token_ids"].tolist()


def test_embeddings_of_student_and_teacher(reference, names, ram_golden):
    with torch.no_grad():
        close(reference(names), ram_golden["text.student_embeds"])
        close(reference.original(names), ram_golden["text.teacher_embeds"])
    assert [name for name, _ in reference.named_parameters() if "text_encoder" not in name] == ["tokens"]


def make(tiny, execution=None, num_layers=2):
    torch.manual_seed(0)
    clip = load_clip(tiny).requires_grad_(False)
    prompt = DeepPrompt(num_layers=num_layers, num_tokens=3).bind(
        TextEncoder(clip, load_tokenizer(tiny), execution=execution)
    )
    prompt.tokens.data += torch.randn_like(prompt.tokens)
    return prompt


def padded_by_hand(prompt, name):
    """One text at the full context length, as the published code runs it."""
    encoder = prompt.text_encoder
    (ids,), _ = encoder.tokenize([prompt.template.replace("{}", name)])
    text, most = encoder.text_model, encoder.context_length
    x = text.embeddings(torch.tensor([ids + [0] * (most - len(ids))]))[0]
    layers, tokens = text.encoder.layers, prompt.tokens.half().float()
    for i, layer in enumerate(layers):
        deep = i - len(layers) + len(tokens)
        states = x
        if deep >= 0:
            states = torch.cat([x[:1], tokens[deep], x[1:]])[:most]
        attention, normed = layer.self_attn, layer.layer_norm1(states)
        query, key, value = (
            getattr(attention, f"{part}_proj")(normed).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            for part in ("q", "k", "v")
        )
        weights = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        weights = weights.masked_fill(torch.ones(most, most).triu(1).bool(), -torch.inf)
        states = states + attention.out_proj((weights.softmax(-1) @ value).transpose(0, 1).flatten(1))
        states = states + layer.mlp(layer.layer_norm2(states))
        if deep >= 0:
            count = len(tokens[deep])
            states = torch.cat([states[:1], states[1 + count :], x[most - count :]])
        x = states
    return encoder.text_projection(text.final_layer_norm(x[len(ids) - 1]))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_short_and_long_texts_are_those_of_the_full_context(tiny, num_layers):
    """The longest one ends where tokens push it out of the context."""
    prompt = make(tiny, num_layers=num_layers)
    assert len(prompt.text_encoder.tokenize([f"A photo of a {NAMES[-1]}."])[0][0]) > 77 - 3
    with torch.no_grad():
        expected = torch.stack([padded_by_hand(prompt, name) for name in NAMES])
        torch.testing.assert_close(prompt.embed(NAMES), expected, atol=1e-5, rtol=1e-5)
        short = prompt.embed(NAMES[:3])  # with a shared prefix that is computed once
        torch.testing.assert_close(short, expected[:3], atol=1e-5, rtol=1e-5)
        for i, name in enumerate(NAMES):
            torch.testing.assert_close(prompt.embed((name,)), expected[i : i + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_all_tokens_learn(tiny, names, checkpointing):
    prompt = make(tiny, Execution(gradient_checkpointing=checkpointing))
    prompt.embed(names).sum().backward()
    assert all(tokens.any() for tokens in prompt.tokens.grad)


def test_eager_attention_is_the_same(tiny):
    prompt = make(tiny)
    with torch.no_grad():
        plain = prompt.embed(NAMES)
        prompt.text_encoder.text_model.config._attn_implementation = "eager"
        torch.testing.assert_close(prompt.embed(NAMES), plain, atol=1e-5, rtol=1e-5)


def test_without_tokens_the_teacher_s_embeddings_do_not_change(tiny):
    prompt = make(tiny)
    template = TemplatePrompt("A photo of a {}.").bind(prompt.text_encoder)
    with torch.no_grad():
        assert torch.equal(prompt.original.embed(NAMES), template.embed(NAMES))
        assert F.cosine_similarity(prompt.embed(NAMES), template.embed(NAMES)).max() < 0.999
    assert template.original is template
    again = copy.deepcopy(prompt)
    assert again.original.text_encoder is again.text_encoder
    assert describe(build(describe(prompt), DeepPrompt, "here")) == describe(prompt)


def test_bad_arguments_end_in_one_line(tiny):
    encoder = TextEncoder(load_clip(tiny), load_tokenizer(tiny))
    siglip = SiglipTextEncoder(SiglipModel(sizes()).eval(), letters())
    for make_it, message in (
        (lambda: DeepPrompt(template="a photo"), "{}"),
        (lambda: DeepPrompt(num_tokens=0), "num_tokens"),
        (lambda: DeepPrompt(num_layers=3).bind(encoder), "num_layers must be at most 2, the text tower's blocks"),
        (lambda: DeepPrompt(num_layers=1, num_tokens=76).bind(encoder), "num_tokens at most 75; got 1 and 76"),
        (lambda: DeepPrompt(num_layers=1).bind(siglip), "needs a CLIP, whose texts begin with a start token"),
    ):
        with pytest.raises(UserError, match=message) as info:
            make_it()
        assert "\n" not in str(info.value)
