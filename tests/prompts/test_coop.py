import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovml import LabelVocabulary, OVMultiLabelClassifier, PromptStage, UserError
from ovml.encoders import TextEncoder
from ovml.encoders.checkpoints import load_clip, load_tokenizer
from ovml.heads import GlobalHead
from ovml.prompts import CoOpPrompt, DualPrompt, TemplatePrompt

NAMES = ("cat", "black dog", "a", "photo of a", "i")
LABELS = {"seen": ["cat", "dog", "red car"], "unseen": ["black cat"]}


@pytest.fixture(scope="module")
def encoder(tiny):
    return TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny), batch_size=3)


@pytest.fixture(scope="module")
def demo():
    return TextEncoder(load_clip("ovml-demo").requires_grad_(False), load_tokenizer("ovml-demo"))


def bound(encoder, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return CoOpPrompt(*args, **kwargs).bind(encoder)


def one_by_one(encoder, names, before, after):
    """Name by name: start, vectors, the name's own embeddings, vectors, full stop, end."""
    embeds = []
    for name in names:
        own = encoder.token_embedding(torch.tensor(encoder.tokenize([f"{name}."])[0][0]))
        row = torch.cat([own[:1], before, own[1:-2], after, own[-2:]])
        embeds.append(encoder.encode(row[None], torch.tensor([len(row)]))[0])
    return torch.stack(embeds)


@pytest.mark.parametrize("num_context", [1, 4, 7])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_the_papers_sequence_name_by_name(encoder, num_context, position):
    prompt = bound(encoder, num_context, None, position)
    with torch.no_grad():
        prompt.context.normal_()
    first = {"end": num_context, "middle": num_context // 2, "front": 0}[position]
    with torch.no_grad():
        found, naive = prompt(NAMES), one_by_one(encoder, NAMES, prompt.context[:first], prompt.context[first:])
    torch.testing.assert_close(found, naive, atol=1e-5, rtol=0)


@settings(max_examples=12)
@given(st.lists(st.text("abcd ", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4))
def test_a_label_does_not_depend_on_the_others(encoder, names):
    names = tuple({" ".join(name.split()): None for name in names})
    prompt = bound(encoder, 3, None)
    with torch.no_grad():
        torch.testing.assert_close(prompt(names), torch.cat([prompt([name]) for name in names]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["a photo of a", "there is one", "x"])
@pytest.mark.parametrize("counted", [True, False])
def test_untrained_words_are_the_template(encoder, demo, init, counted):
    for tower, names in ((encoder, NAMES), (demo, ("red circle", "star", "a", "black cat"))):
        number = len(tower.tokenize([init])[0][0]) - 2 if counted else None
        with torch.no_grad():
            learned, fixed = bound(tower, number, init)(names), TemplatePrompt(init + " {}.").bind(tower)(names)
        torch.testing.assert_close(learned, fixed, atol=1e-6, rtol=0)


def test_the_middle_splits_the_words(demo):
    with torch.no_grad():
        learned = bound(demo, None, "a photo of a", "middle")(["star"])
        fixed = TemplatePrompt("a photo {} of a.").bind(demo)(["star"])
    torch.testing.assert_close(learned, fixed, atol=1e-6, rtol=0)


def test_vectors_before_the_words_are_small_and_random(demo):
    prompt, other = (bound(demo, 12, "a photo of a", seed=seed) for seed in (0, 1))
    ids = demo.tokenize(["a photo of a"])[0][0][1:-1]
    assert torch.equal(prompt.context[-4:], demo.token_embedding.weight[ids])
    assert 0.015 < prompt.context[:8].std() < 0.025
    assert not torch.equal(prompt.context[:8], other.context[:8])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_tokenizer_without_a_start_token(tiny, position):
    """As SigLIP's: the vectors then come first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz_.")}, unk_token="_"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    letters.post_processor = processors.TemplateProcessing(single="$A _", special_tokens=[("_", 26)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="_", unk_token="_")
    tower = TextEncoder(load_clip(tiny).requires_grad_(False), tokenizer)
    names = ("x", "y z", "a b c")
    template = {"end": "a b {}.", "middle": "a {} b.", "front": "{} a b."}[position]
    with torch.no_grad():
        learned, fixed = bound(tower, None, "a b", position)(names), TemplatePrompt(template).bind(tower)(names)
    assert len(tower.tokenize(["a b"])[0][0]) == 3
    torch.testing.assert_close(learned, fixed, atol=1e-6, rtol=0)


def test_the_context_is_computed_once_and_names_are_tokenised_once(encoder, monkeypatch):
    prompt, shared, asked = bound(encoder, 5, None), [], []
    encode, tokenize = encoder.encode, encoder.tokenize
    monkeypatch.setattr(encoder, "encode", lambda *args: shared.append(args[2]) or encode(*args))
    monkeypatch.setattr(encoder, "tokenize", lambda texts: asked.append(tuple(texts)) or tokenize(texts))
    for _ in range(3):
        prompt(NAMES)
        prompt(NAMES[:3])
    assert len(shared) == 3 * 3
    assert all(number >= 1 + 5 for number in shared)
    stopped = tuple(f"{name}." for name in NAMES)
    assert asked == [stopped, stopped[:3]]


def test_gradients_are_those_of_the_plain_form_and_reach_the_context_alone(encoder):
    prompt = bound(encoder, 4, None)
    target = torch.randn(len(NAMES), encoder.embed_dim)
    (prompt(NAMES) * target).sum().backward()
    plain = prompt.context.detach().clone().requires_grad_()
    (one_by_one(encoder, NAMES, plain, plain[:0]) * target).sum().backward()
    torch.testing.assert_close(prompt.context.grad, plain.grad, atol=1e-4, rtol=1e-4)
    assert prompt.learned_parameters() == [prompt.context]
    assert all(p.grad is None for p in encoder.parameters())


def test_half_precision(tiny):
    tower = TextEncoder(load_clip(tiny).requires_grad_(False), load_tokenizer(tiny))
    full = bound(tower, 3, None)
    with torch.no_grad():
        expected = full(NAMES)
        half = full.to(torch.bfloat16)(NAMES)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.1)
    bound(tower, 3, None)(NAMES).float().sum().backward()


def test_vocabularies_and_lists_give_the_same(encoder):
    prompt = bound(encoder, 3, None)
    assert torch.equal(prompt(["cat", "dog"]), prompt(LabelVocabulary(("cat",), ("dog",))))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CoOpPrompt(0), "num_context must be at least 1; got 0"),
        (lambda: CoOpPrompt(None, None), "give words or a number"),
        (lambda: CoOpPrompt(init=" "), "context ' ' has no words"),
        (lambda: CoOpPrompt(init="a photo of a {}"), "leave {} out"),
        (lambda: CoOpPrompt(name_position="back"), "name_position must be 'end' or 'middle' or 'front'; got 'back'"),
    ],
)
def test_wrong_settings_end_in_one_line(make, text):
    with pytest.raises(UserError, match=text) as info:
        make()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("args", "names", "text"),
    [
        ((2, "a photo"), NAMES, "context 'a photo' is 6 tokens; give num_context at least as many, not 2"),
        ((74, None), NAMES, "takes 77 tokens, which leaves 73 vectors beside start, name, full stop and end; got 74"),
        (
            (60, None),
            ["cat", "x" * 16],
            "'xxx.* is 16 tokens, beside the prompt's 60 and a full stop the text tower takes 14; shorten",
        ),
        ((3, None), ["x" * 99], "the text tower takes 77; shorten it"),
    ],
)
def test_what_does_not_fit_the_tower_is_said(encoder, args, names, text):
    with pytest.raises(UserError, match=text):
        bound(encoder, *args)(names)


@pytest.mark.parametrize("prompt", [CoOpPrompt(5, None), CoOpPrompt(None, "a b", "middle"), DualPrompt(6, "a", "b")])
def test_saved_and_loaded_to_the_last_bit(tiny, tmp_path, prompt):
    model = OVMultiLabelClassifier(tiny, LABELS, prompt=prompt).eval()
    for parameter in prompt.learned_parameters():
        parameter.data += torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for labels in (None, ["zebra crossing", "cat"]):
            assert torch.equal(model(pixels, labels), again(pixels, labels))


@pytest.mark.parametrize("prompt", [CoOpPrompt(6), DualPrompt(9)], ids=["CoOp", "Dual"])
def test_the_prompt_stage_trains_the_contexts_and_nothing_else(prompt):
    import lightning.pytorch as pl

    from ovml.data import DemoDataModule

    data = DemoDataModule(train_size=24, eval_size=12, batch_size=8)
    stage = PromptStage(epochs=2, lr=0.01)
    model = OVMultiLabelClassifier("ovml-demo", data.vocabulary, head=GlobalHead(), prompt=prompt, stages=[stage])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = pl.Trainer(
        max_epochs=2, limit_val_batches=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    own = {f"model.prompt.{name}" for name, _ in prompt.named_parameters() if not name.startswith("text_encoder.")}
    assert changed == own
    assert len(own) == len(prompt.learned_parameters()) > 0
