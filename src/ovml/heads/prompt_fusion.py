"""SPARC's head: cosines with prompts of several labels, put on one scale and fused with those of single labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ovml.encoders import ImageFeatures
from ovml.heads.base import Head
from ovml.heads.pool import EmbedTexts, PoolFitted
from ovml.heads.standardized import mean_and_deviation, standardized
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, check_names

IRREGULAR = {
    "person": "people", "man": "men", "child": "children", "foot": "feet", "goose": "geese", "mouse": "mice",
    "die": "dice", "tooth": "teeth", "louse": "lice", "leaf": "leaves", "wolf": "wolves", "knife": "knives",
    "cactus": "cacti", "shelf": "shelves", "calf": "calves",
}  # fmt: skip
"""Plurals that do not end in s."""
NO_LETTERS = r"[\W\d_]+"
"""What separates words, in any script."""


class PromptFusionHead(PoolFitted, Head):
    """Cosines of the whole image with single labels and with compound prompts, fused, as SPARC's code does it.

    Fitted on images without labels. Cosines of an image are standardised over its labels (those with compound prompts
    by the mean and deviation of its cosines with bare names), then each column over the images of the pool. For a label
    the scores of its compound prompts, ascending, and the single score last, are projected on their first principal
    direction; its score is half that, half the single score.

    A prompt belongs to the labels that it names. Prompts that come from the labels' co-occurrence in annotated images,
    as the released list of SPARC does, are not free of labels.

    Args:
        prompts: Compound prompts, such as "a dog next to a bicycle".

    Raises:
        UserError: The prompts are no proper list; or, in `forward`, the head is not fitted for a label.

    Example:
        >>> from ovml.vocabulary import LabelVocabulary
        >>> head, labels = PromptFusionHead(["a cat and a dog"]), torch.randn(2, 8)
        >>> head.begin(LabelVocabulary(("cat", "dog")), labels, lambda texts: torch.randn(len(texts), 8))
        >>> head.observe(ImageFeatures(torch.randn(9, 8), torch.randn(9, 4, 8)))
        >>> head.finish()
        >>> head(ImageFeatures(torch.randn(3, 8), torch.randn(3, 4, 8)), labels).shape
        torch.Size([3, 2])
    """

    bare_embeds: Tensor
    prompt_embeds: Tensor
    belongs: Tensor
    mean: Tensor
    deviation: Tensor
    directions: Tensor

    def __init__(self, prompts: Sequence[str]) -> None:
        super().__init__()
        self.prompts = check_names(prompts, where="PromptFusionHead: prompts")
        for name in ("bare_embeds", "prompt_embeds", "belongs", "mean", "deviation", "directions"):
            self.register_buffer(name, torch.empty(0))
        self._rows: list[Tensor] = []

    def begin(self, vocabulary: LabelVocabulary, label_embeds: Tensor, embed: EmbedTexts) -> None:
        """Embed bare names and prompts."""
        super().begin(vocabulary, label_embeds, embed)
        self.bare_embeds = F.normalize(embed(vocabulary.texts).float(), dim=-1)
        self.prompt_embeds = F.normalize(embed(self.prompts).float(), dim=-1)
        found = prompts_of_labels(self.prompts, vocabulary.texts)
        if not any(found):
            raise UserError("PromptFusionHead: no prompt names one of the labels; take prompts of them, or none")
        self.belongs = torch.tensor([[i in own for i in range(len(self.prompts))] for own in found])
        self._rows = []

    @torch.no_grad()
    def observe(self, features: ImageFeatures) -> None:
        """Keep the standardised rows of a batch."""
        self._rows.append(self._by_rows(features))

    @torch.no_grad()
    def finish(self) -> None:
        """Mean and deviation of each column, and the principal direction of each label.

        Raises:
            UserError: The pool has no more images than a label has prompts.
        """
        width = len(self.label_embeds) + len(self.prompts)
        rows = torch.cat([self.label_embeds.new_empty(0, width), *self._rows])
        most = int(self.belongs.sum(dim=1).max())
        if len(rows) <= most + 1:
            raise UserError(
                f"PromptFusionHead: {len(rows)} images are too few for a label of {most} prompts; give {most + 2} or "
                "more"
            )
        self.mean, self.deviation = (values.squeeze(0) for values in mean_and_deviation(rows, dim=0))
        single, compound = self._by_columns(rows)
        directions = torch.zeros(len(self.belongs), most + 1).to(rows)
        for label, own in enumerate(self.belongs):
            scores = torch.cat([compound[:, own].sort(dim=1).values, single[:, label : label + 1]], dim=1)
            directions[label, : scores.shape[1]] = principal_direction(scores)
        self.directions = directions
        self._rows = []

    def fitted_shapes(self, num_labels: int, width: int) -> dict[str, tuple[int, ...]]:
        """Embeddings, which prompt is of which label, statistics of both, and a direction for each label."""
        number = len(self.prompts)
        most = int(self.belongs.sum(dim=-1).max()) if self.belongs.dim() else 0
        return {
            **{"bare_embeds": (num_labels, width), "prompt_embeds": (number, width), "belongs": (num_labels, number)},
            **dict.fromkeys(("mean", "deviation"), (num_labels + number,)),
            "directions": (num_labels, most + 1),
        }

    def forward(self, features: ImageFeatures, label_embeds: Tensor) -> Tensor:
        """Scores `[B, L]`."""
        own = self.places(label_embeds)
        single, compound = self._by_columns(self._by_rows(features))
        return torch.stack([self._fused(single[:, place], compound, place) for place in own.tolist()], dim=1)

    def _fused(self, single: Tensor, compound: Tensor, place: int) -> Tensor:
        scores = torch.cat([compound[:, self.belongs[place]].sort(dim=1).values, single.unsqueeze(1)], dim=1)
        return (scores @ self.directions[place, : scores.shape[1]].float() + single) / 2

    def _by_rows(self, features: ImageFeatures) -> Tensor:
        """Cosines `[B, L + M]` of labels and prompts, standardised for each image."""
        whole = F.normalize(features.global_embeds.float(), dim=-1)
        single, bare, compound = (
            whole @ embeds.float().T for embeds in (self.label_embeds, self.bare_embeds, self.prompt_embeds)
        )
        return torch.cat([standardized(single), standardized(compound, of=bare)], dim=1)

    def _by_columns(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        scores = (rows - self.mean.float()) / self.deviation.float()
        return scores[:, : len(self.label_embeds)], scores[:, len(self.label_embeds) :]


def principal_direction(scores: Tensor) -> Tensor:
    """The first principal direction of the columns of `[N, m]`: of length one in L1, its mean not negative."""
    centred = scores - scores.mean(dim=0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    direction = -direction if direction.mean() < 0 else direction
    unit: Tensor = direction / direction.abs().sum()
    return unit


def _of_y(name: str) -> list[str]:
    """The plural of a name that ends in -y, or the singular of one in -ies.

    >>> _of_y("puppy"), _of_y("berries"), _of_y("boy"), _of_y("dog")
    (['puppies'], ['berry'], [], [])
    """
    if name.endswith("ies"):
        return [f"{name[:-3]}y"]
    return [f"{name[:-1]}ies"] if re.search("[^aeiou]y$", name) else []


def prompts_of_labels(prompts: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """The prompts that name each label, in singular or plural; names inside longer names do not count.

    >>> prompts_of_labels(["Two people and a dog", "hot dogs"], ["dog", "person", "hot dog"])
    [[0], [0], [1]]
    """
    found: list[list[int]] = [[] for _ in labels]
    order = sorted(range(len(labels)), key=lambda i: -len(labels[i]))
    for number, prompt in enumerate(prompts):
        text = f" {re.sub(NO_LETTERS, ' ', prompt.lower()).strip()} "
        for place in order:
            name = re.sub(NO_LETTERS, " ", labels[place].lower()).strip()
            if not name:
                continue
            first, _, last = name.rpartition(" ")
            plural = f"{first} {IRREGULAR[last]}".strip() if last in IRREGULAR else name
            forms = dict.fromkeys([name, name.removesuffix("s"), f"{name}s", f"{name}es", plural, *_of_y(name)])
            hit = next((form for form in forms if f" {form} " in text), None)
            if hit is not None:
                found[place].append(number)
                text = text.replace(f" {hit} ", " " + "_" * len(hit) + " ")
    return found
