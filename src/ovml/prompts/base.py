"""The base class of all prompt learners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ovml.encoders import TextEncoder
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary, check_names

MKT_TEMPLATE = "There is a {} in the scene"


class PromptLearner(nn.Module, ABC):
    """Turns label names into label embeddings, by way of a text tower.

    A prompt learner is made without a tower (so that a configuration can describe it) and then bound to one.
    Subclass it and write `embed`; make parameters that need the tower's size in `bind`.

    Example:
        >>> from ovml.encoders.checkpoints import load_clip, load_tokenizer
        >>> from ovml.prompts import TemplatePrompt
        >>> prompt = TemplatePrompt().bind(TextEncoder(load_clip("ovml-demo"), load_tokenizer("ovml-demo")))
        >>> prompt(["red circle", "star"]).shape[0]
        2
    """

    text_encoder: TextEncoder

    def bind(self, text_encoder: TextEncoder) -> PromptLearner:
        """Attach the text tower that will be prompted; returns the learner itself."""
        self.text_encoder = text_encoder
        return self

    def forward(self, names: Sequence[str] | LabelVocabulary) -> Tensor:
        """Embed label names.

        Args:
            names: A list of names or a vocabulary.

        Returns:
            Label embeddings `[L, D]`, not L2-normalised.

        Raises:
            UserError: The list is empty, or a name is empty, repeated, or longer than the text tower's context.
        """
        if isinstance(names, LabelVocabulary):
            return self.embed(names.texts)
        return self.embed(check_names(names))

    @abstractmethod
    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Embed checked names, some of which may be the same; returns `[L, D]`."""

    def learned_parameters(self) -> list[nn.Parameter]:
        """The learner's own parameters: all but the text tower's."""
        return [p for name, p in self.named_parameters() if not name.startswith("text_encoder.")]


def check_template(template: str) -> str:
    """Return a template that has exactly one `{}`.

    Raises:
        UserError: It has none or several.
    """
    if template.count("{}") != 1:
        raise UserError(f"template {template!r} must hold {{}} exactly once, where the label's name goes")
    return template
