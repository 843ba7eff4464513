"""For the reference's pages: griffe's own form of what ovml's docstrings write in fewer signs."""

from __future__ import annotations

import re
from textwrap import indent
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Examples under the heading `Example:` or under none become code; `kwargs:` becomes `**kwargs:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring before it is parsed."""
        if obj.docstring is None:
            return
        text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
        text = re.sub(r"(?m)^>>> .*(?:\n.+)*", lambda found: "Examples:\n" + indent(found[0], "    "), text)
        for parameter in getattr(obj, "parameters", ()):
            if parameter.kind is griffe.ParameterKind.var_keyword:
                text = re.sub(rf"(?m)^    {parameter.name}: ", f"    **{parameter.name}: ", text)
        obj.docstring.value = text
