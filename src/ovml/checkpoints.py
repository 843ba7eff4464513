"""CLIP checkpoints by name: the Hub's, a folder's, or the embedded `ovml-demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovml.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

DEMO = "ovml-demo"
DEFAULT = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class ImageSpec:
    """How a checkpoint wants its images; the defaults are those of OpenAI's CLIP.

    Attributes:
        size: Side in pixels.
        mean: Per channel, of values in 0..1.
        std: Standard deviation, the same way.
    """

    size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


def checkpoint_path(name: str) -> str:
    """Where a checkpoint's name points to: the embedded default is a folder inside the package."""
    return str(Path(__file__).parent / "assets" / DEMO) if name == DEMO else name


def load_clip(name: str) -> CLIPModel:
    """Load a `CLIPModel` (safetensors only) in evaluation mode.

    Args:
        name: `ovml-demo`, a folder written by `save_pretrained`, or a name on the Hugging Face Hub.

    Raises:
        UserError: Nothing of that name can be loaded, or it is not a CLIP checkpoint.
    """
    from transformers import AutoConfig, CLIPModel

    config = _load(AutoConfig, name)
    if config.model_type != "clip":
        raise UserError(f"{name}: a checkpoint of type {config.model_type!r}; ovml needs a CLIPModel ('clip')")
    model: CLIPModel = _load(CLIPModel, name, config=config, use_safetensors=True)
    return model.eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint (see `load_clip`)."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, name)
    return tokenizer


def load_image_spec(name: str) -> ImageSpec:
    """Read image size and normalisation from a checkpoint's image processor (see `load_clip`).

    >>> load_image_spec("ovml-demo").mean[0] < 1
    True
    """
    from transformers import CLIPImageProcessorPil

    processor = _load(CLIPImageProcessorPil, name)
    return ImageSpec(processor.crop_size["height"], tuple(processor.image_mean), tuple(processor.image_std))


def _load(loader: Any, name: str, **kwargs: Any) -> Any:
    path = checkpoint_path(name)
    try:
        return loader.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        if Path(path).is_dir():
            what = f"not a complete CLIP checkpoint ({str(error).splitlines()[0]})"
            raise UserError(
                f"{name}: {what}; write the folder with CLIPModel, tokenizer and image processor's save_pretrained"
            ) from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{name}: no such checkpoint here, and the Hugging Face Hub did not give it ({reason}); "
            f"check the name and the network, give a local folder, or use {DEMO!r}, which is part of ovml"
        ) from error
