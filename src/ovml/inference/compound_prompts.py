"""Compound prompts from captions: labels that are named together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from ovml.heads.prompt_fusion import prompts_of_labels
from ovml.utils.errors import check_share


def compound_prompts(
    captions: Sequence[str], labels: Sequence[str], pair_share: float = 0.05, triple_share: float = 0.025
) -> list[str]:
    """Prompts such as "dog and cat" of labels that captions name together.

    As in the list that SPARC released, a pair needs `pair_share` of the captions of one of its labels, a triple
    `triple_share`; there the labels of annotated images were counted, here only captions are. What occurs in one
    caption alone is left out.

    Args:
        captions: Texts that name labels, in singular or plural.
        labels: The labels, as prompts name them.
        pair_share: See above.
        triple_share: See above.

    Raises:
        UserError: A share is not from 0 to 1.

    >>> compound_prompts(["A dog near two cats.", "cats chase dogs", "one fish", "one fish"], ["dog", "cat", "fish"])
    ['dog and cat']
    """
    check_share("compound_prompts", pair_share=pair_share, triple_share=triple_share)
    found = prompts_of_labels(captions, labels)
    named: dict[int, list[int]] = {}
    for label, own in enumerate(found):
        for caption in own:
            named.setdefault(caption, []).append(label)
    prompts = []
    for size, share in ((2, pair_share), (3, triple_share)):
        counts = Counter(group for own in named.values() for group in combinations(own, size))
        for group, count in sorted(counts.items()):
            if count > 1 and count > share * min(len(found[label]) for label in group):
                *others, last = (labels[label] for label in group)
                prompts.append(f"{', '.join(others)}{',' if size > 2 else ''} and {last}")
    return prompts
