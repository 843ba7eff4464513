"""Tokenised vocabularies that a prompt keeps."""

from __future__ import annotations

from collections.abc import Callable

from ovml.encoders.texts import TokenizedTexts

MOST = 4
"""Vocabularies: training uses one, evaluation a few."""


class KeptTokens(dict[tuple[str, ...], TokenizedTexts]):
    """The tokens of the last vocabularies, each tokenised once instead of at every step.

    Example:
        >>> kept = KeptTokens()
        >>> texts = kept.of(("a", "b"), lambda names: TokenizedTexts([[1]] * len(names)))
        >>> kept.of(("a", "b"), None) is texts
        True
    """

    def of(self, names: tuple[str, ...], tokenize: Callable[[tuple[str, ...]], TokenizedTexts]) -> TokenizedTexts:
        """The tokens of names; `tokenize` is called for those that are not kept."""
        if names not in self:
            tokens = tokenize(names)
            for oldest in list(self)[: max(0, len(self) + 1 - MOST)]:
                del self[oldest]
            self[names] = tokens
        return self[names]
