"""The small random text tower of CoOp's and DualCoOp's reference numbers, and a tokenizer that gives their ids."""

from __future__ import annotations

import torch
from reference_clip import loaded
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from ovml.encoders import TextEncoder

WORDS = {"dog": 1929, "traffic": 3399, "light": 1395, "fire": 1769, "hydr": 8031, "ant": 773, "teacher": 4008}
WORDS |= {"'s": 568, "desk": 6550, "t": 339, "-": 268, "shirt": 2523, "u": 340, "s": 338, "flag": 4859, ".": 269}
WORDS |= {"a": 320, "photo": 1125, "of": 539, "without": 2193}


def kin_encoder(golden: dict[str, Tensor]) -> TextEncoder:
    """The text tower."""
    return TextEncoder(kin_clip(golden).requires_grad_(False), kin_tokenizer(), batch_size=4)


def kin_clip(golden: dict[str, Tensor]) -> CLIPModel:
    tower = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 256}
    text = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    vision = {**tower, "hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8}
    text_config = {**tower, **text, "hidden_act": "quick_gelu"}
    config = CLIPConfig(vision_config=vision, text_config=text_config, projection_dim=48)
    return loaded(config, golden, "text", has_vision=False)


def kin_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {**WORDS, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    # As CLIP's: letters, and marks between them; "hydrant" is two pieces.
    split = pre_tokenizers.Split(Regex(r"'s|hydr|[a-z]+|[^\sa-z]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 49406), ("<|endoftext|>", 49407)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>")


def layout(texts, length: int) -> Tensor:
    """What stands where in `TokenizedTexts`, `[L, length]`: a token id, -k for the k-th vector, 0 after."""
    batches = texts.batches("cpu", 3)
    found = []
    for ids, rows, lengths, _ in batches.batches:
        for text, size in zip(torch.where(rows > 0, -rows, ids), lengths.tolist(), strict=True):
            found.append(torch.cat([text[:size], text.new_zeros(length - size)]).unsqueeze(0))
    return batches.restore(found)
