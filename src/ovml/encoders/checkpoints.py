"""CLIP and SigLIP checkpoints by name: the Hub's, a folder's, or the embedded `ovml-demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase, SiglipModel

DEMO = "ovml-demo"
DEFAULT = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class ImageSpec:
    """How a model wants its images; the defaults are those of OpenAI's CLIP.

    Attributes:
        size: Side in pixels.
        mean: Per channel, of values in 0..1.
        std: Standard deviation, the same way.
        squash: Whether a whole picture is resized to a square, its ratio lost, as SigLIP has it; else its short side
            is resized and a square cut from its middle.
        resample: Pillow's number of the filter that resizes: 3 bicubic, 2 bilinear.
        resize: Short side after the resize and before the cut, in pixels; `None`: `size`, as CLIP has it. The MKT paper
            resizes to 256 and cuts 224.
    """

    size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    squash: bool = False
    resample: int = 3
    resize: int | None = None

    @property
    def short_side(self) -> int:
        """Of a picture after the resize, in pixels.

        >>> ImageSpec(224).short_side, ImageSpec(224, resize=256).short_side
        (224, 256)
        """
        return self.resize or self.size

    @classmethod
    def of_config(cls, config: Any) -> ImageSpec:
        """The usual one of a model, where only its configuration is known."""
        size = config.vision_config.image_size
        if config.model_type == "siglip":
            return cls(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), squash=True)
        return cls(size)


def checkpoint_path(name: str) -> str:
    """Where a checkpoint's name points to: the embedded default is a folder inside the package."""
    return str(Path(__file__).parents[1] / "resources" / DEMO) if name == DEMO else name


def load_clip(name: str) -> CLIPModel | SiglipModel:
    """Load a `CLIPModel` or `SiglipModel` (safetensors only) in evaluation mode.

    SigLIP 2's checkpoints of one resolution are `SiglipModel`s too.

    Args:
        name: `ovml-demo`, a folder written by `save_pretrained`, or a name on the Hugging Face Hub.

    Raises:
        UserError: Nothing of that name can be loaded, or it is a checkpoint of another type.
    """
    from transformers import CLIPModel, SiglipModel

    config = _load_config(name)
    loader = SiglipModel if config.model_type == "siglip" else CLIPModel
    model: CLIPModel | SiglipModel = _load(loader, name, config=config, use_safetensors=True)
    return model.eval()


def _load_config(name: str) -> Any:
    from transformers import AutoConfig

    config = _load(AutoConfig, name)
    if config.model_type == "siglip2":
        raise UserError(
            f"{name}: a SigLIP 2 of any resolution (NaFlex), which ovml does not run; take one of a fixed resolution, "
            "such as google/siglip2-base-patch16-224"
        )
    if config.model_type not in ("clip", "siglip"):
        raise UserError(
            f"{name}: a checkpoint of type {config.model_type!r}; ovml needs a CLIPModel ('clip') or SiglipModel "
            "('siglip')"
        )
    return config


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint (see `load_clip`)."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, name)
    except ImportError as error:  # transformers says which package, over many lines
        raise UserError(
            f"{name}: its tokenizer needs more packages; pip install sentencepiece protobuf, or give a folder with a "
            "tokenizer.json"
        ) from error
    return tokenizer


def load_image_spec(name: str) -> ImageSpec:
    """Read how images are resized, cut and normalised from a checkpoint's image processor (see `load_clip`).

    >>> load_image_spec("ovml-demo").mean[0] < 1
    True
    """
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    squash = _load_config(name).model_type == "siglip"
    processor = _load(SiglipImageProcessorPil if squash else CLIPImageProcessorPil, name)
    size = processor.size if squash else processor.crop_size
    if (height := size["height"]) != (width := size["width"]):
        raise UserError(f"{name}: images of {width} x {height} pixels; ovml needs square ones")
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    short_side = None if squash else processor.size.get("shortest_edge")
    resize = short_side if short_side and short_side > height else None
    return ImageSpec(height, mean, std, squash, int(processor.resample), resize)


def _load(loader: Any, name: str, **kwargs: Any) -> Any:
    path = checkpoint_path(name)
    try:
        return loader.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        if Path(path).is_dir():
            what = f"not a complete CLIP checkpoint ({str(error).splitlines()[0]})"
            raise UserError(
                f"{name}: {what}; write the folder with the model's, tokenizer's and image processor's save_pretrained"
            ) from error
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{name}: no such checkpoint here, and the Hugging Face Hub did not give it ({reason}); "
            f"check the name and the network, give a local folder, or use {DEMO!r}, which is part of ovml"
        ) from error
