"""Prompts learned from captions alone, as in TaI-DPT: captions stand for the images that they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ovml.encoders import TextEncoder, pad_rows
from ovml.encoders.execution import causal_block
from ovml.heads.prompt_fusion import prompts_of_labels
from ovml.losses import Loss, RankingLoss
from ovml.model import OpenVocabularyModel
from ovml.prompts import PromptLearner
from ovml.prompts.texts import label_texts
from ovml.training.stages import PromptStage
from ovml.utils.errors import UserError
from ovml.utils.progress import track
from ovml.utils.tensors import full_precision
from ovml.vocabulary import LabelVocabulary, label_key

SCALE = 4.0
"""Factor of the cosines in the loss."""
SHARPNESS = 50.0
"""Factor of the cosines in the softmax over the words of a caption."""


class Learned(NamedTuple):
    """What a prompt learned from.

    Attributes:
        captions: Captions that name a label.
        others: Captions that name none, and were left out.
        unnamed: Labels that no caption names.
        losses: Mean loss of each epoch.
    """

    captions: int
    others: int
    unnamed: tuple[str, ...]
    losses: tuple[float, ...]


def learn_from_captions(
    model: OpenVocabularyModel,
    captions: Sequence[str],
    labels: Sequence[str] | LabelVocabulary | None = None,
    grain: Literal["captions", "words"] = "captions",
    stage: PromptStage | None = None,
    loss: Loss | None = None,
    synonyms: str | Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Learned:
    """Train a model's prompt on captions, without an image (TaI-DPT; Guo et al., CVPR 2023, arXiv 2211.12739).

    CLIP puts a caption near its image, so the caption's embedding stands for the image's, and the labels that it names
    are present. They should outscore the others by the loss. Captions are embedded once; what learns is the prompt,
    such as `CoOpPrompt`, and nothing else.

    As in the published code scores are `4 cos(caption, label)`; with `grain="words"` they are those of the caption's
    tokens, `4 sum_t softmax_t(50 cos_t) cos_t`, as `SpatialSoftmaxHead(temperature=1 / 50)` weighs patches. That code
    learns a prompt of each grain and adds both scores; here a model has one. Its pairs are not divided by the number of
    those that are violated, and its optimizer is SGD (`CoOpStage(epochs=20, lr=1e-4, batch_size=512)`).

    Args:
        model: Its prompt is trained in place.
        captions: Sentences. A label is present where the caption has its name or a synonym, in singular or plural.
        labels: Default: the model's vocabulary.
        grain: What stands for an image: the whole caption, or its words.
        stage: Epochs, rates, optimizer and number of captions in a step. Default: `PromptStage(epochs=20,
            batch_size=512)`.
        loss: Default: `RankingLoss()`.
        synonyms: Other names of labels, as for `EnsemblePrompt`.
        seed: Of the order of the captions.

    Raises:
        UserError: The prompt does not learn or gives pairs, no caption names a label, or the captions are no list.

    Example:
        >>> from ovml.prompts import CoOpPrompt
        >>> model = OpenVocabularyModel("ovml-demo", ["red circle", "blue star", "moon"], prompt=CoOpPrompt())
        >>> captions = ["a red circle and two blue stars", "a moon above", "nothing at all"]
        >>> learned = learn_from_captions(model, captions, stage=PromptStage(epochs=2))
        >>> learned.captions, learned.others, len(learned.losses)
        (2, 1, 2)
    """
    if isinstance(captions, str):
        raise UserError("captions: expected several captions, got one; write [caption]")
    vocabulary, prompt = model.vocabulary_of(labels), model.prompt
    parameters = prompt.learned_parameters()
    if not parameters or prompt.gives_pairs:
        what = "has nothing to learn" if not parameters else "gives pairs of embeddings"
        raise UserError(f"prompt: {type(prompt).__name__} {what}; take CoOpPrompt or ContextPrompt")
    stage = stage or PromptStage(epochs=20, batch_size=512)
    loss = (loss or RankingLoss()).to(model.device)
    targets = caption_targets(captions, vocabulary, synonyms)
    named = targets.any(dim=1)
    if not named.any():
        raise UserError(f"captions: none of {len(captions):,} names a label; check both, or give synonyms")
    kept = [caption for caption, has in zip(captions, named.tolist(), strict=True) if has]
    targets = targets[named].to(model.device)
    features = caption_features(prompt.text_encoder, kept, grain)
    losses = _learn(prompt, vocabulary, features, targets, stage, loss, seed)
    model.forget_labels()
    model.calibration = model.adapted = None  # of other label embeddings
    unnamed = [name for name, has in zip(vocabulary.names, targets.any(dim=0).tolist(), strict=True) if not has]
    return Learned(len(kept), len(captions) - len(kept), tuple(unnamed), tuple(losses))


def caption_targets(
    captions: Sequence[str],
    vocabulary: LabelVocabulary,
    synonyms: str | Mapping[str, Sequence[str]] | None = None,
) -> Tensor:
    """Which labels captions name, `[N, L]` int8.

    A name inside a longer name does not count: "hot dog" names no dog where both are labels.

    >>> caption_targets(["two people", "a dog"], LabelVocabulary(("dog", "person")), {"dog": ["puppy"]}).tolist()
    [[0, 1], [1, 0]]
    """
    others = {label_key(name): texts for name, texts in label_texts(synonyms or {}, "synonym").items()}
    named = [(column, text) for column, text in enumerate(vocabulary.texts)]
    named += [(i, text) for i, name in enumerate(vocabulary.names) for text in others.get(label_key(name), ())]
    targets = torch.zeros(len(captions), len(vocabulary), dtype=torch.int8)
    found = prompts_of_labels(captions, [text for _, text in named])
    for (column, _), own in zip(named, found, strict=True):
        targets[own, column] = 1
    return targets


@torch.no_grad()
def caption_features(
    encoder: TextEncoder, captions: Sequence[str], grain: Literal["captions", "words"] = "captions"
) -> Tensor:
    """Length-one embeddings of captions, `[N, 1, D]`, or of their tokens, `[N, T, D]`, zero behind the end token.

    A caption that is too long for the text tower is cut.

    Raises:
        UserError: Words are asked of a tower that does not read from left to right.
    """
    spans = encoder.tokenizer(list(captions), return_offsets_mapping=True, verbose=False)["offset_mapping"]
    most = encoder.context_length
    texts = [
        caption if len(own) <= most else caption[: own[most - 2][1]]
        for caption, own in zip(captions, spans, strict=True)
    ]
    if grain == "captions":
        return F.normalize(full_precision(encoder(texts)), dim=-1).unsqueeze(1)
    if type(encoder) is not TextEncoder:
        raise UserError("grain: words needs a CLIP, whose text tower reads from left to right; take captions")
    rows: list[Tensor] = []
    size = encoder.batch_size or 256
    for start in range(0, len(texts), size):
        rows += _embed_words(encoder, encoder.tokenize(texts[start : start + size])[0])
    return pad_sequence(rows, batch_first=True)


def _embed_words(encoder: TextEncoder, ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Length-one embeddings `[T, D]` of each text's tokens."""
    text, device = encoder.text_model, encoder.token_embedding.weight.device
    hidden_states = text.embeddings(inputs_embeds=encoder.token_embedding(pad_rows(ids).to(device)))
    mask = encoder._causal_mask(hidden_states, hidden_states.shape[1])
    hidden_states = encoder.execution.run(causal_block, text.encoder.layers, hidden_states, mask)
    embeds = F.normalize(full_precision(encoder.text_projection(text.final_layer_norm(hidden_states))), dim=-1)
    return [row[: len(own)] for row, own in zip(embeds, ids, strict=True)]


def caption_scores(features: Tensor, label_embeds: Tensor) -> Tensor:
    """Scores `[B, L]` of captions for labels.

    Args:
        features: `[B, T, D]`, as of `caption_features`.
        label_embeds: `[L, D]`.
    """
    cosines = features @ F.normalize(full_precision(label_embeds), dim=-1).T
    empty = (features == 0).all(dim=-1, keepdim=True)
    weights = (SHARPNESS * cosines).masked_fill(empty, -torch.inf).softmax(dim=1)
    return SCALE * (weights * cosines).sum(dim=1)


def _learn(
    prompt: PromptLearner,
    vocabulary: LabelVocabulary,
    features: Tensor,
    targets: Tensor,
    stage: PromptStage,
    loss: Loss,
    seed: int,
) -> list[float]:
    """Train; returns the mean loss of each epoch."""
    size = stage.batch_size or 512
    batches = -(-len(features) // size)
    groups = stage.own_groups([*prompt.learned_parameters(), *loss.parameters()], "prompt")
    optimizer = stage.optimizer(groups)
    schedule = stage.schedule(optimizer, batches * stage.epochs, stage.epochs)
    order = torch.Generator().manual_seed(seed)
    losses = []
    with torch.inference_mode(False), torch.enable_grad():
        for _ in track(range(stage.epochs), "learning from captions"):
            total = 0.0
            for batch in torch.randperm(len(features), generator=order).split(size):
                scores = caption_scores(features[batch], prompt.embed(vocabulary.texts))
                value = loss(scores, targets[batch])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += float(value.detach()) * len(batch)
                if schedule["interval"] == "step":
                    schedule["scheduler"].step()
            if schedule["interval"] == "epoch":
                schedule["scheduler"].step()
            losses.append(total / len(features))
            if not total < float("inf"):
                raise UserError(f"captions: the loss is {total}, the training has diverged; lower the stage's lr")
    return losses
