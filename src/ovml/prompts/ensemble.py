"""Ensembles of fixed sentences per label: templates, or descriptions from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.prompts.base import PromptLearner
from ovml.prompts.several import stack_texts
from ovml.prompts.texts import label_texts, read_templates
from ovml.utils.errors import UserError, error_at
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

    Synonyms are other names of a label, such as "kitten" for "cat". Each is put into the templates, and counts as much
    as the label's own name.

    Files are read when the object is created, so a saved model does not need them.

    Args:
        templates: Templates with `{}` in place of the name, or a text file with one template per line: its path, or the
            bare name of one that ovml ships, `openai.txt` (80) or `tagclip.txt` (85); see `ovml.prompts.texts`.
            Default: the 20 templates of `GENERAL_TEMPLATES`.
        descriptions: Descriptions by name, or the path of a file of them: JSON `{name: [description, ...]}`, or CSV
            with a name and then its descriptions in each line. Names are matched without regard to case and
            whitespace.
        sentence: Pattern of the sentence for a description, with `{description}` once and `{name}` at most once. Use
            `"{description}"` if the file contains whole sentences.
        normalize: Whether to divide means by their L2 norm.
        synonyms: Other names by name, or the path of a file as of `descriptions`.
        pool: `mean` over all sentences; or `max`: a label's score is that of its best text, which is a description, or
            the name or a synonym in all templates. Heads then score each text as if it were a label. For scoring only:
            nothing trains, is fitted or exported with it.

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

    embeds_apart = True

    def __init__(
        self,
        templates: str | Sequence[str] | None = None,
        descriptions: str | Mapping[str, Sequence[str]] | None = None,
        sentence: str = "{name}, which has {description}",
        normalize: bool = True,
        synonyms: str | Mapping[str, Sequence[str]] | None = None,
        pool: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__()
        if sentence.count("{description}") != 1 or sentence.count("{name}") > 1:
            raise UserError(f"sentence {sentence!r} must hold {{description}} once and {{name}} at most once")
        self.templates = _templates(GENERAL_TEMPLATES if templates is None else templates)
        self.descriptions = None if descriptions is None else label_texts(descriptions, "description")
        self.synonyms = None if synonyms is None else label_texts(synonyms, "synonym")
        self.sentence = sentence
        self.normalize = normalize
        self.pool = pool
        self.gives_several = pool == "max"
        self._descriptions, self._synonyms = (
            {label_key(name): texts for name, texts in (found or {}).items()}
            for found in (self.descriptions, self.synonyms)
        )

    def sentences(self, name: str) -> list[str]:
        """Return all sentences for a name: of its descriptions or else the templates, then of its synonyms."""
        return [sentence for text in self._texts(name) for sentence in text]

    def _texts(self, name: str) -> list[list[str]]:
        """The sentences of each text of a name: one for a description, one for each template for a name or synonym."""
        before, after = (part.replace("{name}", name) for part in self.sentence.split("{description}"))
        described = [[f"{before}{text}{after}"] for text in self._descriptions.get(label_key(name), ())]
        names = [*([] if described else [name]), *self._synonyms.get(label_key(name), ())]
        return described + [[template.replace("{}", other) for template in self.templates] for other in names]

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Return the mean over the sentences of each name, `[L, D]`, or of each of its texts, `[L, K, D]`.

        One call of the text tower embeds all sentences.
        """
        texts = [self._texts(name) for name in names]
        if not self.gives_several:
            return self._means([[sentence for text in own for sentence in text] for own in texts])
        means = self._means([text for own in texts for text in own])
        return stack_texts(means, [len(own) for own in texts])

    def _means(self, sentences: list[list[str]]) -> Tensor:
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
        with error_at(where):
            check_template(template)
    return [template for _, template in named]
