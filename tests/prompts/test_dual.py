import pytest
import torch
from torch.nn import functional as F

from ovml import UserError
from ovml.encoders import ImageFeatures, TextEncoder
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.heads import CosineHead, GlobalHead, TwoStreamHead
from ovml.prompts import CoOpPrompt, DualPrompt, TemplatePrompt

NAMES = ("cat", "black dog", "a", "i", "the scene")


@pytest.fixture(scope="module")
def encoder(tiny):
    return TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny), batch_size=3)


@pytest.fixture(scope="module")
def prompt(encoder):
    torch.manual_seed(0)
    prompt = DualPrompt(5, None, None).bind(encoder)
    for parameter in prompt.learned_parameters():
        parameter.data.normal_()
    return prompt


@pytest.fixture(scope="module")
def pair(encoder, prompt):
    """Embeddings `t+` and `t-`, each by a prompt learner of its own."""
    embeds = []
    for context in (prompt.present_context, prompt.absent_context):
        single = CoOpPrompt(5, None).bind(encoder)
        single.context.data.copy_(context)
        embeds.append(F.normalize(single(NAMES), dim=-1).detach())
    return embeds


@pytest.fixture(scope="module")
def features(encoder):
    torch.manual_seed(1)
    return ImageFeatures(torch.randn(4, encoder.embed_dim), torch.randn(4, 6, encoder.embed_dim))


def test_the_pair_is_two_contexts_and_the_embedding_their_difference(prompt, pair):
    with torch.no_grad():
        torch.testing.assert_close(prompt(NAMES), pair[0] - pair[1], atol=1e-6, rtol=0)


def test_a_dot_product_is_the_difference_of_two(prompt, pair, features):
    """With the image normalised these are the two cosines, and the sigmoid is the paper's softmax over the pair."""
    image = F.normalize(features.global_embeds, dim=-1)
    present, absent = (image @ embeds.T for embeds in pair)
    logits = image @ prompt(NAMES).detach().T
    torch.testing.assert_close(logits, present - absent, atol=1e-6, rtol=0)
    paper = present.exp() / (present.exp() + absent.exp())
    torch.testing.assert_close(logits.sigmoid(), paper, atol=1e-6, rtol=0)


def test_heads_do_with_the_difference_what_the_docstring_says(prompt, pair, features):
    embeds = prompt(NAMES).detach()
    difference = features.global_embeds @ pair[0].T - features.global_embeds @ pair[1].T
    of_global, cosine = (head(features, embeds) / difference for head in (GlobalHead(), CosineHead()))
    assert (of_global > 0).all()
    assert (cosine > 0).all()
    torch.testing.assert_close(of_global, of_global[:, :1].expand_as(of_global), rtol=1e-4, atol=0)  # one a row
    length = (pair[0] - pair[1]).norm(dim=1) * features.global_embeds.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cosine, 1 / length, rtol=1e-4, atol=0)
    patches = features.patch_embeds @ pair[0].T - features.patch_embeds @ pair[1].T
    both = (patches.topk(2, dim=1).values.mean(dim=1) + difference) / 2
    torch.testing.assert_close(TwoStreamHead(2, normalize=False)(features, embeds), both, atol=1e-5, rtol=0)


def test_untrained_words_are_two_templates(encoder):
    learned = DualPrompt(None, "with", "none").bind(encoder)
    with torch.no_grad():
        pair = [F.normalize(TemplatePrompt(t).bind(encoder)(NAMES), dim=-1) for t in ("with {}.", "none {}.")]
        torch.testing.assert_close(learned(NAMES), pair[0] - pair[1], atol=1e-6, rtol=0)


def test_gradients_reach_both_contexts_and_only_them(encoder):
    prompt = DualPrompt(4, None, None).bind(encoder)
    (prompt(NAMES) * torch.randn(len(NAMES), encoder.embed_dim)).sum().backward()
    assert prompt.learned_parameters() == [prompt.present_context, prompt.absent_context]
    assert all(p.grad.abs().max() > 0 for p in prompt.learned_parameters())
    assert all(p.grad is None for p in encoder.parameters())


def test_half_precision(tiny):
    tower = TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny))
    prompt = DualPrompt(4, None, None).bind(tower)
    with torch.no_grad():
        expected = prompt(NAMES)
        half = prompt.to(torch.bfloat16)(NAMES)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: DualPrompt(present="a b", absent="a b"), "both start as 'a b': give them different words, or None"),
        (lambda: DualPrompt(None, "a", None), "give words or a number"),
        (lambda: DualPrompt(-1), "num_context must be at least 1; got -1"),
        (lambda: DualPrompt(absent=""), "context '' has no words"),
    ],
)
def test_wrong_settings_end_in_one_line(make, text):
    with pytest.raises(UserError, match=text) as info:
        make()
    assert "\n" not in str(info.value)


def test_words_that_do_not_fit_are_named(encoder):
    with pytest.raises(UserError, match="context 'abc d' is 4 tokens; give num_context at least as many, not 3"):
        DualPrompt(3, "abc", "abc d").bind(encoder)
