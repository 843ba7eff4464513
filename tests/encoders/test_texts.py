"""Tokenised texts: any batches, and any selection of texts, give the embeddings of each text."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovml.encoders import TextEncoder, TokenizedTexts
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.encoders.texts import texts_per_batch
from ovml.prompts import ContextPrompt, CoOpPrompt, DeepPrompt, DualCoOpPrompt, DualPrompt, TemplatePrompt

NAMES = tuple(f"{a} {b * n}".strip() for a in ("red", "a", "blue sky") for n, b in enumerate("xyzuvw"))
PROMPTS = [
    ContextPrompt(),
    CoOpPrompt(3, None, "middle"),
    DualCoOpPrompt(2),
    DualPrompt(2, None, None),
    DeepPrompt(num_layers=1, num_tokens=2),
]


def encoder(clip, **options):
    return TextEncoder(load_clip(clip).requires_grad_(False), load_tokenizer(clip), **options)


@given(
    ids=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=1, max_size=7),
    size=st.integers(1, 8),
    data=st.data(),
)
def test_batches_hold_each_text_once_and_what_all_of_them_share(ids, size, data):
    rows = [[data.draw(st.integers(-1, 1)) for _ in row] for row in ids]
    texts = TokenizedTexts(ids, rows)
    columns = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, unique=True))
    for found, expected in (
        (texts.batches("cpu", size), range(len(ids))),
        (texts.batches("cpu", size, torch.tensor(columns)), columns),
    ):
        own = []
        for batch in found.batches:
            assert len(batch.ids) <= size
            read = [
                list(zip(tokens[:n], replaced[:n], strict=True))
                for tokens, replaced, n in zip(*(t.tolist() for t in batch[:3]), strict=True)
            ]
            assert len({tuple(text[: batch.num_shared]) for text in read}) == 1
            assert batch.num_shared < min(map(len, read))
            own += read
        places = range(len(own)) if found.places is None else found.places.tolist()
        in_order = [[(token, row - 1) for token, row in own[place]] for place in places]
        assert in_order == [list(zip(ids[i], rows[i], strict=True)) for i in expected]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: type(prompt).__name__)
def test_batches_and_selections_change_no_embedding_and_no_gradient(tiny, prompt):
    """1e-5: sums of other lengths, in another order."""
    results = []
    for size in (4, 100):
        torch.manual_seed(0)
        prompt.bind(encoder(tiny, batch_size=size))
        for columns in (None, torch.tensor([3, 17, 0, 9, 8, 11])):
            embeds = prompt.embed(NAMES) if columns is None else prompt.embed_some(NAMES, columns)
            part = embeds[torch.tensor([3, 17, 0, 9, 8, 11])] if columns is None else embeds
            gradients = torch.autograd.grad(part.square().sum(), prompt.learned_parameters())
            results.append((part.detach(), gradients))
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: type(prompt).__name__)
def test_a_vocabulary_is_tokenised_once(tiny, prompt, monkeypatch):
    prompt.bind(encoder(tiny))
    prompt.embed(NAMES)
    monkeypatch.setattr(TextEncoder, "tokenize", lambda *_: pytest.fail("tokenised again"))
    again = prompt.embed(NAMES), prompt.embed_some(NAMES, torch.tensor([1, 4]))
    assert [len(embeds) for embeds in again] == [len(NAMES), 2]


def test_a_prompt_without_kept_tokens_embeds_some_names_too(tiny):
    prompt = TemplatePrompt().bind(encoder(tiny))
    torch.testing.assert_close(
        prompt.embed_some(NAMES, torch.tensor([5, 2])), prompt([NAMES[5], NAMES[2]]), atol=1e-5, rtol=0
    )


def test_only_the_last_vocabularies_are_kept(tiny):
    prompt = ContextPrompt().bind(encoder(tiny))
    for name in NAMES[:6]:
        prompt.embed((name,))
    assert list(prompt._tokens) == [(name,) for name in NAMES[2:6]]
    other = ContextPrompt().bind(prompt.text_encoder)
    assert not other._tokens
    prompt.bind(prompt.text_encoder)
    assert not prompt._tokens  # which another tokenizer may have made


@pytest.mark.parametrize(
    ("gigabytes", "width", "longest", "expected"),
    [(80, 512, 12, 4096), (16, 512, 16, 2048), (16, 768, 64, 341), (2, 1024, 77, 256)],
)
def test_a_gpu_takes_as_many_texts_as_its_memory_holds(monkeypatch, gigabytes, width, longest, expected):
    of_memory = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: of_memory)
    assert texts_per_batch(torch.device("cuda", 0), width, longest) == expected
