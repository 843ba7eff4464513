"""The base class of all prompt learners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ovml.encoders import TextEncoder
from ovml.utils.parts import Part
from ovml.vocabulary import LabelVocabulary, check_names

MKT_TEMPLATE = "There is a {} in the scene"


class PromptLearner(Part, nn.Module, ABC):
    """Base class of prompt learners, which turn label names into label embeddings with a text tower.

    A prompt learner is created without a tower, so that a configuration can describe it, and then bound to one.
    To add one, subclass it and implement `embed`; create parameters whose shape depends on the tower in `bind`.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> from ovml.prompts import TemplatePrompt
        >>> prompt = TemplatePrompt().bind(TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo")))
        >>> prompt(["red circle", "star"]).shape[0]
        2
    """

    text_encoder: TextEncoder
    gives_pairs: bool = False
    """Whether embeddings are pairs `[L, 2, D]`, of an absent and a present label; for heads with `takes_pairs`."""
    gives_several: bool = False
    """Whether embeddings are `[L, K, D]`, of several texts of each label, whose best counts; see `EnsemblePrompt`."""

    embeds_apart: bool = False
    """Whether the embedding of a label depends on its own text alone, so that processes may embed a share each."""

    def bind(self, text_encoder: TextEncoder) -> PromptLearner:
        """Attach a text tower; returns the learner itself."""
        self.text_encoder = text_encoder
        return self

    def forward(self, names: Sequence[str] | LabelVocabulary) -> Tensor:
        """Embed label names.

        Args:
            names: A list of names or a vocabulary.

        Returns:
            Label embeddings `[L, D]`, or pairs `[L, 2, D]`, not L2-normalised.

        Raises:
            UserError: The list is empty, or a name is empty, repeated, or longer than the text tower's context.
        """
        if isinstance(names, LabelVocabulary):
            return self.embed(names.texts)
        return self.embed(check_names(names))

    @property
    def original(self) -> PromptLearner:
        """The prompt whose embeddings go with the original CLIP, which teaches in training. Default: this one."""
        return self

    @abstractmethod
    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Embed checked names, which may repeat; returns `[L, D]`."""

    def embed_some(self, names: tuple[str, ...], columns: Tensor) -> Tensor:
        """Embed the names at some positions, as `labels_per_step` does at every step; returns `[C, D]`.

        A learner that tokenises a vocabulary once overrides it, so that nothing is tokenised anew.

        Args:
            names: `L` checked names.
            columns: Positions `[C]`, on the CPU.
        """
        return self.embed(tuple(names[i] for i in columns.tolist()))

    def learned_parameters(self) -> list[nn.Parameter]:
        """Return the learner's own parameters: all except those of the text tower."""
        return [p for name, p in self.named_parameters() if not name.startswith("text_encoder.")]
