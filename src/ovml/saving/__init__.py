"""Models on disk and on the Hugging Face Hub."""

from ovml.saving.load import load_model
from ovml.saving.save import save_model

__all__ = ["load_model", "save_model"]
