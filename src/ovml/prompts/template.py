"""Fixed templates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovml.prompts.base import MKT_TEMPLATE, PromptLearner, check_template
from ovml.utils.errors import UserError


class TemplatePrompt(PromptLearner):
    """Label names in a fixed template; several templates are averaged, embedding by embedding.

    Args:
        templates: One template or several, each with `{}` where the name goes.

    Raises:
        UserError: No template, or one without exactly one `{}`.

    Example:
        >>> TemplatePrompt(["a photo of a {}", "a drawing of a {}"]).templates[1]
        'a drawing of a {}'
    """

    def __init__(self, templates: str | Sequence[str] = MKT_TEMPLATE) -> None:
        super().__init__()
        self.templates = [templates] if isinstance(templates, str) else list(templates)
        if not self.templates:
            raise UserError("templates: the list is empty; give at least one template such as 'a photo of a {}'")
        for template in self.templates:
            check_template(template)

    def embed(self, names: tuple[str, ...]) -> Tensor:
        """Mean over templates of the text embeddings `[L, D]`."""
        embeds = [self.text_encoder([t.replace("{}", name) for name in names]) for t in self.templates]
        return torch.stack(embeds).mean(dim=0)
