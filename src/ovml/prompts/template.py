"""Fixed templates around the label's name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovml.prompts.base import MKT_TEMPLATE, PromptLearner
from ovml.utils.errors import UserError
from ovml.vocabulary import check_template


class TemplatePrompt(PromptLearner):
    """Embeds label names in a fixed template; the embeddings of several templates are averaged.

    Args:
        templates: One or more templates, each with `{}` in place of the name.

    Raises:
        UserError: There is no template, or a template does not contain `{}` exactly once.

    Example:
        >>> TemplatePrompt(["a photo of a {}", "a drawing of a {}"]).templates[1]
        'a drawing of a {}'
    """

    embeds_apart = True

    def __init__(self, templates: str | Sequence[str] = MKT_TEMPLATE) -> None:
        super().__init__()
        self.templates = [templates] if isinstance(templates, str) else list(templates)
        if not self.templates:
            raise UserError("templates: the list is empty; give at least one template such as 'a photo of a {}'")
        for template in self.templates:
            check_template(template)

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Return the mean text embedding over templates, `[L, D]`."""
        embeds = [self.text_encoder([t.replace("{}", name) for name in names]) for t in self.templates]
        return torch.stack(embeds).mean(dim=0)
