"""The small random CLIP of the reference numbers, and a tokenizer that gives the reference's ids."""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

WORDS = {"there": 997, "is": 533, "a": 320, "in": 530, "the": 518, "scene": 3562, "cat": 2368, "black": 1449}
WORDS |= {"traffic": 3399, "light": 1395, "sydney": 5278, "opera": 8056, "house": 1212}


def reference_clip(golden: dict[str, Tensor]) -> CLIPModel:
    config = CLIPConfig(
        vision_config={
            "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 512,
            "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu",
        },
        text_config={
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 256,
            "vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
            "hidden_act": "quick_gelu",
        },
        projection_dim=48,
    )  # fmt: skip
    return loaded(config, golden, "prompt")


def loaded(config: CLIPConfig, golden: dict[str, Tensor], table: str, has_vision: bool = True) -> CLIPModel:
    """A CLIP with the reference's weights; of its token table only the rows that are used were kept.

    Args:
        config: Sizes of the towers.
        golden: Holds the weights as `clip.NAME`, the rows as `TABLE.used_ids` and `TABLE.used_rows`.
        table: Where the rows are.
        has_vision: Whether the reference has a vision tower.
    """
    clip = CLIPModel(config)
    state = {k.removeprefix("clip."): v.float() for k, v in golden.items() if k.startswith("clip.")}
    missing, unexpected = clip.load_state_dict(state, strict=False)
    assert not unexpected
    of_vision = () if has_vision else ("vision_model.", "visual_projection.")
    left = [k for k in missing if "position_ids" not in k and not k.startswith(of_vision)]
    assert left == ["text_model.embeddings.token_embedding.weight"]
    weight = clip.text_model.embeddings.token_embedding.weight.data.zero_()
    weight[golden[f"{table}.used_ids"].long()] = golden[f"{table}.used_rows"].float()
    return clip.eval()


def reference_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {**WORDS, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 49406), ("<|endoftext|>", 49407)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>")
