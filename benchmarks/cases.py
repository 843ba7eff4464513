"""What `run.py` measures: for each case our way and the naive or published one, on the same inputs.

A side is a function that prepares its inputs and returns what is timed. It runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ranking_loss import all_pairs
from torch import Tensor

Run = Callable[[], object]
Side = Callable[[bool], Run]
"""From `quick` to the function that is timed."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: What is measured, and at which size.
        quick_name: The same at the sizes of `--quick`; empty where it would take too long there.
        against: The other way, in words.
        aim: The least ratio, or what else is asked of it.
        ours: Our side; its function is timed, or gives back what it measured itself.
        theirs: The other side; `None` where it does not fit into memory, or there is none.
        repeats: Timed calls of ours and theirs, after one that is not timed; 0 times the first call.
    """

    name: str
    quick_name: str
    against: str
    aim: str
    ours: Side
    theirs: Side | None
    repeats: tuple[int, int] = (5, 3)


# ---------------------------------------------------------------- ranking loss


def _pairs(batch: int, labels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, labels, generator=generator)
    return logits, (torch.rand(batch, labels, generator=generator) < 0.01).long()


def _ranking(ours: bool, batch: int, labels: int) -> Side:
    def side(quick: bool) -> Run:
        from ovml.losses import ranking_loss

        loss = ranking_loss if ours else all_pairs
        loss(*_pairs(2, 8))  # what torch loads late is none of the call's memory
        logits, targets = _pairs(batch // 4, labels // 4) if quick else _pairs(batch, labels)

        def run() -> None:
            loss(logits.detach().requires_grad_(), targets).backward()

        return run

    return side


# ---------------------------------------------------------------- training steps


def _clip(vision_layers: int = 12, text_layers: int = 12) -> Any:
    """CLIP in the shapes of ViT-B/16, random weights."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 16}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    config = CLIPConfig(
        vision_config={**vision, "num_hidden_layers": vision_layers, "image_size": 224},
        text_config={**text, "num_hidden_layers": text_layers},
        projection_dim=512,
    )
    return CLIPModel(config).eval().requires_grad_(False)


def _vision_step(ours: bool) -> Side:
    """Forward, backward and optimizer step of stage 1; 925 label embeddings are fixed."""

    def side(quick: bool) -> Run:
        import copy

        from ovml.distillation import FeatureL1
        from ovml.encoders import ImageEncoder
        from ovml.heads import TwoStreamHead
        from ovml.losses import ranking_loss
        from ovml.training.optim import layer_decay_groups

        clip = _clip(vision_layers=6 if quick else 12, text_layers=1)
        encoder = ImageEncoder(clip)
        head, distil = TwoStreamHead(top_k=16), FeatureL1()
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1 if quick else 8, 3, 224, 224, generator=generator)
        labels = torch.randn(925, 512, generator=generator)
        targets = (torch.rand(len(images), 925, generator=generator) < 0.01).long()
        if ours:
            teacher = copy.deepcopy(encoder.tail(2))
        else:
            full_teacher = ImageEncoder(copy.deepcopy(clip))
            encoder.requires_grad_(True)  # all of the tower is in the graph, though the optimizer steps its end
        groups = layer_decay_groups(encoder, 1e-3, 0.05, 0.65, 2)
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(groups)

        def run() -> None:
            if ours:
                with torch.no_grad():
                    hidden_states = encoder.trunk(images, 2)
                    target = teacher(hidden_states)
                features = encoder.tail(2)(hidden_states)
            else:
                features = encoder(images)
                with torch.no_grad():
                    target = full_teacher(images)
            loss = ranking_loss(head(features, labels), targets) + distil(features, target)
            loss.backward()
            optimizer.step()
            encoder.zero_grad()

        return run

    return side


def names(count: int) -> list[str]:
    """Label names of one to three words."""
    words = ["sky", "water", "night", "street", "portrait", "flowers", "snow", "bridge", "harbor", "festival"]
    return [" ".join([words[i % 10], *([words[i // 10 % 10]] if i % 3 else []), str(i)]) for i in range(count)]


class WordTokenizer:
    """A token a word, with offsets; CLIP's own merges cannot be had without a download."""

    def __init__(self, vocab: int = 49408) -> None:
        self.vocab = vocab

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[Any]]]:
        """Token ids and character spans."""
        ids, offsets = [], []
        for text in texts:
            spans, position = [], 0
            for word in text.split(" "):
                spans.append((position, position + len(word)))
                position += len(word) + 1
            words = [sum(map(ord, text[a:b])) * 7919 % (self.vocab - 2) for a, b in spans]
            ids.append([self.vocab - 2, *words, self.vocab - 1])
            offsets.append([(0, 0), *spans, (0, 0)])
        return {"input_ids": ids, "offset_mapping": offsets}


def _label_step(ours: bool) -> Side:
    """Label embeddings of a stage-2 step, forward and backward, for 925 labels."""

    def side(quick: bool) -> Run:
        from ovml.encoders import TextEncoder
        from ovml.prompts import ContextPrompt

        encoder = TextEncoder(_clip(vision_layers=1, text_layers=2 if quick else 12), WordTokenizer())
        prompt = ContextPrompt().bind(encoder)
        labels = tuple(names(100 if quick else 925))

        def run() -> None:
            prompt(labels).square().mean().backward()

        if ours:
            return run

        table = encoder.token_embedding
        rows = {int(token): row for row, token in enumerate(prompt.context_ids)}
        ids, _ = encoder.tokenize([prompt.template.replace("{}", name) for name in labels])
        padded = torch.tensor([row + [0] * (77 - len(row)) for row in ids])
        lengths = torch.tensor([len(row) for row in ids])
        places = torch.tensor([[rows.get(token, -1) for token in row] for row in padded.tolist()])

        def padded_run() -> None:
            # Backward label batch by label batch: all 925 at once would keep 20 GB of activations.
            for part in range(0, len(labels), 256):
                some = slice(part, part + 256)
                learned = prompt.context[places[some].clamp(min=0)]
                embeds = torch.where((places[some] >= 0).unsqueeze(-1), learned, table(padded[some]))
                (_plain_tower(encoder, embeds, lengths[some]).square().sum() / (len(labels) * 512)).backward()

        return padded_run

    return side


def _plain_tower(encoder: Any, embeds: Tensor, lengths: Tensor) -> Tensor:
    """The text tower as transformers runs it, over all 77 positions."""
    text = encoder.text_model
    hidden_states = text.embeddings(inputs_embeds=embeds)
    hidden_states = text.encoder(inputs_embeds=hidden_states, attention_mask=None, is_causal=True).last_hidden_state
    ends = text.final_layer_norm(hidden_states)[torch.arange(len(lengths)), lengths - 1]
    projected: Tensor = encoder.text_projection(ends)
    return projected


# ---------------------------------------------------------------- evaluation


def _batches(num_images: int, num_labels: int, unknown: float) -> Any:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, num_images, 256):
        shape = (min(256, num_images - start), num_labels)
        preds = torch.rand(shape, generator=generator)
        draw = torch.rand(shape, generator=generator)
        targets = (draw < 0.005 * (1 - unknown)).to(torch.int8)
        yield preds, targets.masked_fill_(draw > 1 - unknown, -1) if unknown else targets


def _evaluation(
    ours: bool, num_images: int, num_labels: int, unknown: float = 0.0, ks: tuple[int, ...] = (3, 5)
) -> Side:
    """Update with every batch, then compute; drawing the scores is timed on both sides."""

    def side(quick: bool) -> Run:
        from torchmetrics.classification import MultilabelAveragePrecision

        from ovml.metrics import MultilabelMeanAveragePrecision, PrecisionRecallF1AtK

        images, labels = (num_images // 20, num_labels // 4) if quick else (num_images, num_labels)

        def run() -> None:
            if ours:
                metrics: list[Any] = [MultilabelMeanAveragePrecision(), PrecisionRecallF1AtK(ks)]
            else:
                metrics = [MultilabelAveragePrecision(labels, thresholds=None), *_torchmetrics_f1(ks)]
            for preds, targets in _batches(images, labels, unknown):
                for metric in metrics:
                    metric.update(preds, targets)
            for metric in metrics:
                metric.compute()

        return run

    return side


def _torchmetrics_f1(ks: tuple[int, ...]) -> list[Any]:
    """Micro F1 of the k best labels: torchmetrics has it for predictions that are already cut at k."""
    from torchmetrics.classification import BinaryF1Score

    class F1AtK(BinaryF1Score):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.k = k

        def update(self, preds: Tensor, targets: Tensor) -> None:
            best = torch.zeros_like(targets).scatter_(1, preds.topk(self.k, dim=1).indices, 1)
            super().update(best.flatten(), targets.flatten())

    return [F1AtK(k) for k in ks]


# ---------------------------------------------------------------- a huge vocabulary


def _huge_vocabulary(ours: bool) -> Side:
    def side(quick: bool) -> Run:
        from ovml.encoders import ImageFeatures
        from ovml.heads import TwoStreamHead
        from ovml.heads.base import normalize_over_labels

        generator = torch.Generator().manual_seed(0)
        features = ImageFeatures(
            torch.randn(8, 512, generator=generator), torch.randn(8, 196, 512, generator=generator)
        )
        labels = torch.randn(5_000 if quick else 100_000, 512, generator=generator)
        head = TwoStreamHead(top_k=16)

        @torch.inference_mode()
        def run() -> Tensor:
            if ours:
                logits: Tensor = head(features, labels)
                return logits
            similarity = features.patch_embeds @ labels.T  # [B, P, L]
            local = similarity.topk(16, dim=1).values.mean(dim=1)
            return (normalize_over_labels(local) + normalize_over_labels(features.global_embeds @ labels.T)) / 2

        return run

    return side


# ---------------------------------------------------------------- tagging


def _tagging(ours: bool) -> Side:
    """The whole command; see `tagging.py`."""

    def side(quick: bool) -> Run:
        import tagging

        way = tagging.ovml_tag if ours else tagging.pipeline
        return lambda: way("vit-b-32", 64, 1000)

    return side


CASES = [
    Case(
        f"ranking loss, forward + backward, {batch} x {labels:,}",
        f"ranking loss, forward + backward, {batch // 4} x {labels // 4:,}",
        "all pairs, [B, L, L]",
        aim,
        _ranking(True, batch, labels),
        _ranking(False, batch, labels),
        (30, 3),
    )
    for batch, labels, aim in ((64, 925, "300x, 1/50 of the memory"), (8, 7186, "3,000x, 1/50 of the memory"))
] + [
    Case(
        "stage-1 step, ViT-B/16, 8 images",
        "stage-1 step, half of ViT-B/16, 1 image",
        "separate full teacher, graph through frozen blocks",
        "1.5x",
        _vision_step(True),
        _vision_step(False),
        (3, 3),
    ),
    Case(
        "label embeddings of a stage-2 step, 925 labels",
        "label embeddings of a stage-2 step, 100 labels, 2 blocks",
        "77 tokens",
        "8x",
        _label_step(True),
        _label_step(False),
        (1, 0),
    ),
    Case(
        "mAP + F1@3,5 of 107,859 x 1,006",
        "mAP + F1@3,5 of 5,392 x 251",
        "torchmetrics' exact classes",
        "4x, memory under 1.5 times the scores (414 MiB)",
        _evaluation(True, 107_859, 1_006),
        _evaluation(False, 107_859, 1_006),
        (0, 0),
    ),
    Case(
        "mAP + F1@10,20 of 125,456 x 7,586, 99.8 % unknown",
        "mAP + F1@10,20 of 6,272 x 1,896, 99.8 % unknown",
        "torchmetrics would keep 3.5 GiB of scores and 7.1 GiB of targets",
        "under 6 GB",
        _evaluation(True, 125_456, 7_586, unknown=0.998, ks=(10, 20)),
        None,
        (0, 0),
    ),
    Case(
        "two-stream scores, 8 images x 100,000 labels",
        "two-stream scores, 8 images x 5,000 labels",
        "unchunked",
        "no slower, under 2 GB",
        _huge_vocabulary(True),
        _huge_vocabulary(False),
        (5, 5),
    ),
    Case(
        "tagging 64 images with 1,000 labels, ViT-B/32",
        "",
        "transformers' zero-shot pipeline, its time computed from 1 and 3 images",
        "20x",
        _tagging(True),
        _tagging(False),
        (0, 0),
    ),
]
