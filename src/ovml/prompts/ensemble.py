"""Ensembles of fixed sentences per label: templates, or descriptions from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.prompts.base import PromptLearner
from ovml.prompts.texts import read_templates
from ovml.utils.errors import UserError
from ovml.utils.files import read_text
from ovml.utils.schema import short
from ovml.vocabulary import check_template, label_key

GENERAL_TEMPLATES = (
    "a photo of a {}",
    "a photo of {}",
    "a photo of the {}",
    "a picture with {} in it",
    "a picture of many {}",
    "there is a {} here",
    "this picture shows {}",
    "a {} seen up close",
    "a {} seen from afar",
    "a small {}",
    "a large {}",
    "part of a {}",
    "{} in front",
    "{} behind other things",
    "{} in daylight",
    "{} in the dark",
    "{} outdoors",
    "{} indoors",
    "a blurred photo of a {}",
    "a drawing of a {}",
)
"""General templates for any label."""


class EnsemblePrompt(PromptLearner):
    """Mean embedding of several fixed sentences per label, without trained parameters.

    Templates follow CLIP's prompt ensembling (Radford et al., ICML 2021, arXiv 2103.00020):
    `t = n(mean_k n(g(sentence_k)))`, where `g` is the text tower and `n` divides by the L2 norm, so all sentences have
    the same weight. `TemplatePrompt` in contrast averages `g(sentence_k)` without normalisation.

    Descriptions follow Menon and Vondrick (ICLR 2023, arXiv 2210.07183): a label's score is the mean similarity of the
    image with the sentences "{name}, which has {description}". This equals the dot product with the mean embedding,
    which `normalize=False` returns. Names without descriptions use the templates.

    Files are read when the object is created, so a saved model does not need them.

    Args:
        templates: Templates with `{}` in place of the name, or a text file with one template per line: its path, or the
            bare name of one that ovml ships, `openai.txt` (80) or `tagclip.txt` (85); see `ovml.prompts.texts`.
            Default: the 20 templates of `GENERAL_TEMPLATES`.
        descriptions: Descriptions by name, or the path of a JSON file `{name: [description, ...]}`. Names are matched
            without regard to case and whitespace.
        sentence: Pattern of the sentence for a description, with `{description}` once and `{name}` at most once. Use
            `"{description}"` if the file contains whole sentences.
        normalize: Whether to divide the mean by its L2 norm.

    Raises:
        UserError: A file cannot be read, or a template, a description or `sentence` is invalid.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> from ovml.encoders import TextEncoder
        >>> prompt = EnsemblePrompt(descriptions={"star": ["five points", "sharp corners"]})
        >>> prompt.sentences("star")
        ['star, which has five points', 'star, which has sharp corners']
        >>> prompt = prompt.bind(TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo")))
        >>> prompt(["star", "red circle"]).norm(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(
        self,
        templates: str | Sequence[str] | None = None,
        descriptions: str | Mapping[str, Sequence[str]] | None = None,
        sentence: str = "{name}, which has {description}",
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if sentence.count("{description}") != 1 or sentence.count("{name}") > 1:
            raise UserError(f"sentence {sentence!r} must hold {{description}} once and {{name}} at most once")
        self.templates = _templates(GENERAL_TEMPLATES if templates is None else templates)
        self.descriptions = None if descriptions is None else _descriptions(descriptions)
        self.sentence = sentence
        self.normalize = normalize
        self._by_key = {label_key(name): texts for name, texts in (self.descriptions or {}).items()}

    def sentences(self, name: str) -> list[str]:
        """Return all sentences for a name."""
        if label_key(name) not in self._by_key:
            return [template.replace("{}", name) for template in self.templates]
        before, after = (part.replace("{name}", name) for part in self.sentence.split("{description}"))
        return [f"{before}{text}{after}" for text in self._by_key[label_key(name)]]

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Return the mean over the sentences of each name, `[L, D]`; one call of the text tower embeds all of them."""
        sentences = [self.sentences(name) for name in names]
        # The tower computes a prefix that a whole batch shares once, so sentences of one template stay together.
        places = sorted(((k, i) for i, own in enumerate(sentences) for k in range(len(own))))
        embeds = self.text_encoder([sentences[i][k] for k, i in places])
        normalized = F.normalize(embeds.float(), dim=-1)
        row_of = {place: row for row, place in enumerate(places)}
        rows = [row_of[k, i] for i, own in enumerate(sentences) for k in range(len(own))]
        starts = [0, *accumulate(map(len, sentences))][:-1]
        bags, offsets = (torch.tensor(values, device=embeds.device) for values in (rows, starts))
        means = F.embedding_bag(bags, normalized, offsets, mode="mean")
        return (F.normalize(means, dim=-1) if self.normalize else means).to(embeds.dtype)


def _templates(templates: str | Sequence[str]) -> list[str]:
    if isinstance(templates, str):
        if "{}" in templates:
            raise UserError(f"templates: {templates!r} is a template, not a file of them; write [{templates!r}]")
        named = read_templates(templates)
    else:
        named = [(f"templates, number {number}", template) for number, template in enumerate(templates, 1)]
    if not named:
        where = templates if isinstance(templates, str) else "templates"
        raise UserError(f"{where}: there is no template; give at least one such as 'a photo of a {{}}'")
    for where, template in named:
        try:
            check_template(template)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return [template for _, template in named]


def _descriptions(descriptions: str | Mapping[str, Any]) -> dict[str, list[str]]:
    where = "descriptions"
    pairs: Any = descriptions.items() if isinstance(descriptions, Mapping) else None
    if isinstance(descriptions, str):
        where = descriptions
        text = read_text(descriptions, "description", "JSON such as {name: [description, ...]}")
        try:
            # As pairs, because a dict drops the first of two equal keys.
            pairs = json.loads(text, object_pairs_hook=_Pairs)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}, line {error.lineno}: not JSON ({error.msg}); correct it") from error
        if not isinstance(pairs, _Pairs):
            raise UserError(f"{where}: expected a JSON object {{name: [description, ...]}}")
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for name, texts in pairs:
        if not label_key(name):
            raise UserError(f"{where}, key {name!r}: the name is empty; give it one or remove it")
        if label_key(name) in first:
            raise UserError(f"{where}, key {name!r}: the same name as {first[label_key(name)]!r}; keep one of them")
        first[label_key(name)] = name
        whole = isinstance(texts, (list, tuple)) and not isinstance(texts, _Pairs)
        if not whole or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise UserError(
                f"{where}, key {name!r}: expected a list of descriptions, none of them empty; got {short(texts)}"
            )
        found[name] = [text.strip() for text in texts]
    return found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs, in the order of the file."""
