"""Prompt learners turn label names into label embeddings. To add one, subclass `PromptLearner`."""

from ovml.prompts.base import PromptLearner
from ovml.prompts.context import ContextPrompt
from ovml.prompts.coop import CoOpPrompt
from ovml.prompts.deep import DeepPrompt
from ovml.prompts.dual import DualCoOpPrompt, DualPrompt
from ovml.prompts.ensemble import EnsemblePrompt
from ovml.prompts.template import TemplatePrompt

__all__ = [
    "CoOpPrompt",
    "ContextPrompt",
    "DeepPrompt",
    "DualCoOpPrompt",
    "DualPrompt",
    "EnsemblePrompt",
    "PromptLearner",
    "TemplatePrompt",
]
