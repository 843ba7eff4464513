"""SigLIP's towers against transformers' own."""

import json
import sys

import numpy as np
import pytest
import torch
from commands import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from ovml import OVMultiLabelClassifier, PromptStage, UserError, VisionStage
from ovml.cli.main import main
from ovml.encoders import ImageEncoder, SiglipImageEncoder, SiglipTextEncoder, TextEncoder, make_encoders
from ovml.encoders.checkpoints import load_clip, load_image_processor, load_tokenizer
from ovml.encoders.execution import Execution
from ovml.encoders.image_processor import ImageProcessor, Preprocessing
from ovml.encoders.siglip import token_spans
from ovml.heads import CosineHead, LocalHead
from ovml.prompts import CoOpPrompt, TemplatePrompt

TEXTS = ["There is a black cat in the scene", "b", "Zebra", "cc dd"]
VOCABULARY = {"seen": ["cat", "dog"], "unseen": ["black cat"]}
TOWER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def sizes(**vision):
    text = {**TOWER, "vocab_size": 60, "num_hidden_layers": 2, "max_position_embeddings": 64}
    vision = {**TOWER, "num_hidden_layers": 3, "image_size": 48, "patch_size": 12, **vision}
    return SiglipConfig(vision_config=vision, text_config=text)


def letters():
    """Letters as sentencepiece has them; lower case and no punctuation, an end token that pads too."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<unk>", "</s>", *alphabet, *(f"▁{c}" for c in alphabet), "▁"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", c) for c in alphabet], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,:'()-]"), "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids"], padding_side="right", **special
    )


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A folder with a random SigLIP as the Hub has it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    model = SiglipModel(sizes())
    for parameter in model.parameters():  # biases and norms begin as 0 and 1, which would hide what forgets them
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    letters().save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=2).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text_encoder(siglip):
    return SiglipTextEncoder(load_clip(siglip), load_tokenizer(siglip))


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def test_a_resize_before_a_cut_is_refused(siglip):
    with pytest.raises(UserError, match=r"model.preprocessing.resize 60: the checkpoint resizes whole images"):
        OVMultiLabelClassifier(siglip, preprocessing=Preprocessing(resize=60))


def test_global_embedding_is_transformers_own(siglip, pixels):
    model = load_clip(siglip)
    with torch.no_grad():
        ours = SiglipImageEncoder(model)(pixels).global_embeds
        theirs = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_patch_embedding_is_the_head_on_that_patch_alone(siglip, pixels):
    model = load_clip(siglip)
    with torch.no_grad():
        ours = SiglipImageEncoder(model)(pixels).patch_embeds
        states = model.vision_model(pixels).last_hidden_state
        for patch in range(16):
            alone = model.vision_model.head(states[:, patch : patch + 1])
            torch.testing.assert_close(ours[:, patch], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_trunk_and_tail_are_the_whole_tower(siglip, pixels, num_layers):
    encoder = SiglipImageEncoder(load_clip(siglip))
    with torch.no_grad():
        split = encoder.tail(num_layers)(encoder.trunk(pixels, num_layers))
        whole = encoder(pixels)
    assert torch.equal(split.global_embeds, whole.global_embeds)
    assert torch.equal(split.patch_embeds, whole.patch_embeds)
    with pytest.raises(UserError, match="from 0 to 3"):
        encoder.tail(4)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
@pytest.mark.parametrize("side", ["right", "left"])
def test_text_embeddings_equal_transformers_at_the_length_of_training(siglip, batch_size, side):
    model, tokenizer = load_clip(siglip), load_tokenizer(siglip)
    tokenizer.padding_side = side
    padded = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_text_features(padded["input_ids"]).pooler_output
        ours = SiglipTextEncoder(model, tokenizer, batch_size)(TEXTS)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@settings(max_examples=8)
@given(texts=st.lists(st.text("ab C.", min_size=1, max_size=6), min_size=1, max_size=4), shared=st.integers(0, 2))
def test_neither_neighbours_nor_a_common_beginning_change_a_text(text_encoder, texts, shared):
    encoder = text_encoder
    ids, _ = encoder.tokenize(texts)
    lengths = torch.tensor([len(row) for row in ids])
    table = encoder.token_embedding.weight
    rows = torch.full((len(ids), int(lengths.max()) + 3), 7)  # what stands after the end token must not matter
    for row, own in zip(rows, ids, strict=True):
        row[: len(own)] = torch.tensor(own)
    with torch.no_grad():
        together = encoder.encode(table[rows], lengths, shared)
        alone = torch.cat([encoder.encode(table[torch.tensor([row])], torch.tensor([len(row)])) for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_towers_choose_their_encoders(siglip, tiny):
    pair = make_encoders(load_clip(siglip), load_tokenizer(siglip))
    assert [type(encoder) for encoder in pair] == [SiglipImageEncoder, SiglipTextEncoder]
    pair = make_encoders(load_clip(tiny), load_tokenizer(tiny))
    assert [type(encoder) for encoder in pair] == [ImageEncoder, TextEncoder]
    with pytest.raises(UserError, match="clip: a Linear; ovml needs a CLIPModel or SiglipModel"):
        make_encoders(torch.nn.Linear(2, 2), None)


@pytest.mark.parametrize(
    "text",
    ["a red fox", "in front: (a) red-fox, here", "fox", "  two   blanks "],
)
def test_spans_of_a_tokenizer_that_does_not_tell_them(text):
    fast = letters()
    encoded = fast(text, return_offsets_mapping=True)
    pieces = fast.convert_ids_to_tokens(encoded["input_ids"])
    ours = token_spans(text.lower(), [None if p == "</s>" else p for p in pieces], "<unk>")
    for piece, own, theirs in zip(pieces, ours, encoded["offset_mapping"], strict=True):
        begin, end = theirs
        begin = end - len(text[begin:end].lstrip(" ,:()-"))  # the tokenizer counts what it dropped
        assert (begin == end) == (piece in ("▁", "</s>"))
        assert own == (begin, end) if begin < end else own[0] == own[1]


def test_characters_without_a_token_do_not_shift_the_spans():
    assert token_spans("a ß, cat", ["▁a", "▁", "<unk>", "▁c", "at"], "<unk>")[2:] == [(2, 3), (5, 6), (6, 8)]


def test_a_slow_tokenizer_serves_as_well(siglip):
    """As google/siglip's is: no offsets, and no more than ids and pieces."""
    fast = load_tokenizer(siglip)

    class Slow:
        is_fast, padding_side, pad_token_id, unk_token = False, "right", 1, "<unk>"
        all_special_tokens = ("</s>", "<unk>")

        def __call__(self, texts, verbose):
            return fast(texts)

        def convert_ids_to_tokens(self, ids):
            return fast.convert_ids_to_tokens(ids)

    models_of = [OVMultiLabelClassifier(load_clip(siglip), VOCABULARY, tokenizer=t) for t in (fast, Slow())]
    for model in models_of:
        model.model.prompt.context.data += 0.1 * torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(models_of[0].model.embed_labels(), models_of[1].model.embed_labels())


def test_sentencepiece_spans(tmp_path):
    """The class that google/siglip has, on a model trained here."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    (tmp_path / "text.txt").write_text("a red fox in a scene\nthere is a black cat in the scene\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=40, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = SiglipTokenizer(str(tmp_path / "spiece.model"))
    encoder = SiglipTextEncoder(SiglipModel(sizes()), tokenizer)
    text = "There is: a (black) cat-fox, in the scene"
    (ids,), (spans,) = encoder.tokenize([text])
    assert ids == tokenizer(text)["input_ids"]
    assert "".join(text[slice(*span)].lower() for span in spans) == "thereisablackcatfoxinthescene"


def test_free_vectors_stand_where_words_would(text_encoder):
    """SigLIP's texts have no start token."""
    names = ["cat", "Zebra x"]
    with torch.no_grad():
        words = TemplatePrompt("a photo of a {}").bind(text_encoder)(names)
        vectors = CoOpPrompt(None, "a photo of a").bind(text_encoder)(names)
    torch.testing.assert_close(vectors, words, atol=1e-5, rtol=0)


def test_zero_shot_is_transformers_siglip(siglip, pixels):
    model = OVMultiLabelClassifier(siglip, VOCABULARY, head=CosineHead(), prompt=TemplatePrompt("a photo of a {}"))
    theirs, tokenizer = AutoModel.from_pretrained(siglip).eval(), AutoTokenizer.from_pretrained(siglip)
    texts = [f"a photo of a {name}" for name in model.model.vocabulary]
    tokens = tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**tokens, pixel_values=pixels).logits_per_image
        cosines = (logits - theirs.logit_bias) / theirs.logit_scale.exp()
        torch.testing.assert_close(model.eval()(pixels), cosines, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(80, 60), (48, 48), (31, 90)])
def test_images_are_prepared_as_the_processor_does(siglip, size):
    spec = load_image_processor(siglip)
    assert spec == ImageProcessor(48, (0.5,) * 3, (0.5,) * 3, squash=True, resample=2)
    image = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 50).convert("RGB")
    theirs = SiglipImageProcessorPil.from_pretrained(siglip)(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(spec(image).numpy(), theirs, atol=1e-5)


STAGES = (VisionStage(epochs=1, warmup_epochs=0, num_layers=1), PromptStage(epochs=1))


@pytest.mark.parametrize("execution", [{}, {"gradient_checkpointing": True}])
def test_what_learns_in_both_stages(siglip, pixels, execution):
    model = OVMultiLabelClassifier(siglip, VOCABULARY, head=LocalHead(2), stages=list(STAGES), **execution).train()
    model._trainer = type("One", (), {"world_size": 1, "global_step": 0})()
    model.log = lambda *_, **__: None
    assert model.model.image_encoder.execution == Execution(**execution)
    data = {"pixel_values": pixels, "labels": torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.int8)}
    for stage, names in zip(STAGES, [{"layers.2", "post_layernorm", "head"}, {"context"}], strict=True):
        model.start_stage(stage)
        model.zero_grad()
        model.training_step(data, 0).backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved
        assert all(any(part in name for part in names) for name in moved), moved
    assert model.teacher.visual_projection.probe.grad is None


def test_the_teacher_is_the_original_head(siglip, pixels):
    model = OVMultiLabelClassifier(siglip, VOCABULARY, head=CosineHead(), stages=list(STAGES)).eval()
    before = model(pixels)
    for name, parameter in model.named_parameters():
        if name in model._learned_names and "prompt" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    assert not torch.allclose(before, model(pixels))
    torch.testing.assert_close(model.zero_shot()(pixels), before, atol=1e-5, rtol=0)


def test_half_precision(siglip, pixels):
    model = OVMultiLabelClassifier(siglip, VOCABULARY).to(torch.bfloat16).eval()
    with torch.no_grad():
        assert model.model.encode_images(pixels.bfloat16()).global_embeds.dtype == torch.bfloat16
        assert model(pixels.bfloat16()).dtype == torch.float32


def test_a_saved_model_scores_the_same_to_the_last_bit_and_is_a_siglip(siglip, pixels, tmp_path):
    model = OVMultiLabelClassifier(siglip, VOCABULARY, stages=list(STAGES)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name in model._learned_names:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    assert again.model.image_processor == model.model.image_processor
    with torch.no_grad():
        assert torch.equal(again(pixels), model(pixels))
        plain = SiglipModel.from_pretrained(tmp_path / "saved").eval()
        features = plain.get_image_features(pixels).pooler_output
        torch.testing.assert_close(features, model.model.image_encoder(pixels).global_embeds, atol=1e-5, rtol=0)


def test_fit_and_tag_by_the_command(siglip, config, tmp_path, capsys, picture):
    command = ["fit", "--config", config, "--model.clip", siglip, "--trainer.default_root_dir", str(tmp_path)]
    assert main([*command, *SMALL, "--trainer.limit_train_batches", "1"]) == 0
    capsys.readouterr()
    assert main(["tag", str(picture), "--labels", "cat,dog", "--model", str(tmp_path / "version_0")]) == 0
    assert "cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "siglip2"}', "SigLIP 2 of any resolution"),
        ('{"model_type": "bert"}', "a checkpoint of type 'bert'; ovml needs a CLIPModel"),
        ('{"model_type": "siglip"}', "not a complete CLIP checkpoint"),
    ],
)
def test_other_checkpoints_end_in_one_line(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as info:
        OVMultiLabelClassifier(str(tmp_path))
    assert "\n" not in str(info.value)


def test_what_the_towers_lack_is_said():
    with pytest.raises(UserError, match="pools no image embedding"):
        SiglipImageEncoder(SiglipModel(sizes(vision_use_head=False)))
    with pytest.raises(UserError, match="text embeddings of 32 values do not fit image embeddings of 16"):
        SiglipTextEncoder(SiglipModel(sizes(hidden_size=16)), letters())
    tokenizer = letters()
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no pad_token"):
        SiglipTextEncoder(SiglipModel(sizes()), tokenizer)
    with pytest.raises(UserError, match="'x{90}' is 91 tokens, the text tower takes 64"):
        SiglipTextEncoder(SiglipModel(sizes()), letters())(["short", "x" * 90])


def test_no_sentencepiece_is_said(siglip, monkeypatch):
    def missing(*_, **__):
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library\nbut it was not found")

    monkeypatch.setattr(sys.modules["transformers"].AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf") as info:
        load_tokenizer(siglip)
    assert "\n" not in str(info.value)


# ---------------------------------------------------------------------- SigLIP 2

LANGUAGES = ["Schwarze Katze", "黒い猫", "Черная Кошка", "قطة سوداء", "एक बिल्ली", "Μαύρη ΓΆΤΑ"]
LANGUAGES += ["İstanbul Kedi", "a Black cat"]  # the first letter has two when it is lower-cased
KNOWN = ["▁", *"abcdefghijklmnopqrstuvwxyz黒い猫кшτ", "ca", "cat"]


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    """A folder with a random SigLIP 2 of one resolution: its tokenizer spells unknown letters in bytes."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += dict.fromkeys(KNOWN)
    merges = [("c", "a"), ("ca", "t")]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip2")
    config = sizes()
    config.text_config.vocab_size = len(pieces)
    SiglipModel(config).save_pretrained(folder)
    GemmaTokenizer({piece: i for i, piece in enumerate(pieces)}, merges).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=2).save_pretrained(folder)
    # As in the repositories of Google: no ids in the configuration, the end token by these settings.
    file, of_model = folder / "tokenizer_config.json", json.loads((folder / "config.json").read_text())
    of_model["text_config"] = {k: v for k, v in of_model["text_config"].items() if not k.endswith("token_id")}
    (folder / "config.json").write_text(json.dumps(of_model))
    own = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "do_lower_case": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own, "model_max_length": 64}))
    return str(folder)


def test_labels_of_several_languages_are_embedded_as_transformers_does(siglip2):
    model, tokenizer = load_clip(siglip2), load_tokenizer(siglip2)
    lowered = [text.lower() for text in LANGUAGES]
    padded = tokenizer(lowered, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    assert padded[:, -1].tolist() == [0] * len(LANGUAGES)  # the tower reads <pad>, not <eos> as SigLIP's first version
    encoder = SiglipTextEncoder(model, tokenizer)
    with torch.no_grad():
        theirs = model.get_text_features(padded).pooler_output
        torch.testing.assert_close(encoder(LANGUAGES), theirs, atol=1e-5, rtol=0)
    for text, spans in zip(LANGUAGES, encoder.tokenize(LANGUAGES)[1], strict=True):
        assert {place for span in spans for place in range(*span)} == set(range(len(text)))


def test_tag_in_several_languages_by_the_command(siglip2, picture, tmp_path, capfd):
    (tmp_path / "labels.txt").write_text("\n".join(LANGUAGES), encoding="utf-8")
    command = ["tag", str(picture), "--labels-file", str(tmp_path / "labels.txt"), "--top-k", "8", "--model", siglip2]
    assert main([*command, "--format", "tsv"]) == 0
    out, err = capfd.readouterr()
    assert sorted(line.split("\t")[1] for line in out.splitlines()) == sorted(LANGUAGES)
    assert len(err.splitlines()) == 1  # what the file of labels has; no warning of transformers


def test_a_siglip_2_of_any_resolution_is_refused_in_one_line(tmp_path, picture, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "siglip2", "vision_config": {"num_patches": 256}}')
    assert main(["tag", str(picture), "--labels", "cat", "--model", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "NaFlex), which ovml does not run; take one of a fixed resolution, such as google/siglip2-base" in line
