"""Saving, loading and sharing models: `from_pretrained`, `save_pretrained`, `push_to_hub`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from ovml.encoders.checkpoints import checkpoint_path
from ovml.saving.card import Rows, model_card
from ovml.saving.folder import (
    CARD,
    CONFIG,
    PARTS,
    WEIGHTS,
    base_model,
    first_line,
    put_in_place,
    read_json,
    read_model,
    saved_config,
    write_model,
)
from ovml.training.stages import RunFolder, Stage
from ovml.utils.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

    from ovml.classifier import OVMultiLabelClassifier

HUB_ERRORS = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, ValueError, EntryNotFoundError))
"""What a call of the Hub may raise; first the HTTP library's own error."""
DOWNLOADED = ["*.json", "merges.txt", "spiece.model", WEIGHTS, CARD]


class HubMixin(ModelHubMixin, library_name="ovml", tags=["open-vocabulary", "multi-label", "clip"]):
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of `OVMultiLabelClassifier`."""

    _hub_base_model: str | None = None
    _tower_stages: Sequence[Stage] = ()
    """Stages whose additions a loaded model has in its tower, and which are not among its own."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **parts: Any,
    ) -> Self:
        """Load a model, in evaluation mode.

        Nothing in the files is executed: parts are made only of classes that are subclasses of ovml's base classes,
        from plain arguments.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` wrote, a name on the Hugging Face Hub, a run
                folder or checkpoint of `ovml fit`, or a plain CLIP checkpoint (`ovml-demo`, a folder, a Hub name),
                which is then used zero-shot.
            force_download: See `huggingface_hub`, as for the next four.
            token: For private repositories.
            cache_dir: Where downloads are kept.
            local_files_only: Ask the network for nothing.
            revision: Branch, tag or commit.
            parts: Constructor arguments that take the place of what was saved, such as `labels` or `head`.

        Raises:
            UserError: There is no such model, or it is not complete, or one of its parts cannot be made here.
        """
        name = str(pretrained_model_name_or_path)
        path = Path(checkpoint_path(name))
        if path.is_dir() and (path / "config.yaml").is_file():
            path = RunFolder(path).newest_checkpoint()
        if path.is_file():
            return cast("Self", cast(Any, cls).from_checkpoint(path, **parts).eval())
        if path.suffix == ".ckpt":
            raise UserError(f"{path}: no such checkpoint; check the path")
        folder: Path | None = path
        if not path.is_dir():
            folder = _download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        saved = None if folder is None else read_json(folder / CONFIG, missing={}).get("ovml")
        if folder is None or saved is None:
            chosen = name if folder in (None, path) else str(folder)
            return cast("Self", cast(Any, cls)(chosen, **{"stages": [], **parts}).eval())
        return cast("Self", read_model(cls, folder, saved, parts))

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        metrics: Rows | str | Path | None = None,
        repo_id: str | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write the model into a folder, which appears when it is complete.

        The frozen teacher is not written: the original CLIP can be had by its name, and of a loaded model the
        teacher is the saved tower itself.

        Args:
            save_directory: A new or empty folder, or one that holds nothing but a saved model. Its model card is kept
                unless `metrics` are given.
            metrics: For the model card: rows such as `{"prompt": {"zsl/mAP": 0.37}}`, or a run folder (see
                `ovml.saving.card.read_metrics`).
            repo_id: Name on the Hub, for the model card.
            model_card_kwargs: The same two, as `huggingface_hub` passes them on.

        Raises:
            UserError: A part cannot be described, the folder holds other files, or cannot be written.
        """
        target = Path(os.path.abspath(save_directory))
        card: dict[str, Any] = {"source": repo_id or target.name, "metrics": metrics, **(model_card_kwargs or {})}
        model = cast("OVMultiLabelClassifier", self)
        config = saved_config(model)
        text = str(self.generate_model_card(**card))
        aside = target.with_name(f".{target.name}.part-{os.getpid()}")
        try:
            aside.mkdir(parents=True)
            write_model(model, config, aside)
            (aside / CARD).write_text(text, encoding="utf-8")
            put_in_place(aside, target, keep_card=card["metrics"] is None)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{target}: cannot be written ({reason}); give another folder") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, metrics: Rows | str | Path | None = None, **kwargs: Any
    ) -> str:
        """Upload the model to the Hugging Face Hub, in one commit; the repository is made where it is not there.

        Args:
            repo_id: `owner/name`.
            metrics: See `save_pretrained`.
            kwargs: `private`, `token`, `branch`, `create_pr`, `commit_message`, ...: see `huggingface_hub`.

        Returns:
            The commit's address.

        Raises:
            UserError: A part cannot be described, or the Hub does not take the model.
        """
        card: dict[str, Any] = {"source": repo_id, "metrics": metrics}
        saved_config(cast("OVMultiLabelClassifier", self))
        self.generate_model_card(**card)  # what is wrong here is found before a repository is made
        try:
            return str(super().push_to_hub(repo_id, model_card_kwargs=card, **kwargs))
        except UserError:
            raise
        except HUB_ERRORS as error:
            reason = first_line(error)
            raise UserError(
                f"{repo_id}: the Hugging Face Hub did not take the model ({reason}); log in with 'hf auth login', "
                "check name and network, or save it with save_pretrained"
            ) from error

    def generate_model_card(  # type: ignore[override]
        self, source: str = "owner/name", metrics: Rows | str | Path | None = None
    ) -> ModelCard:
        """The model card: how to load it, of which parts it is, what it scored (see `save_pretrained`)."""
        from ovml import __version__

        model = cast("OVMultiLabelClassifier", self)
        base = base_model(model)
        data = ModelCardData(
            **{
                **cast(Any, self._hub_mixin_info.model_card_data).to_dict(),
                "base_model": base,
                "pipeline_tag": "zero-shot-image-classification",
            }
        )
        vocabulary = model.vocabulary
        labels = "none" if vocabulary is None else f"{len(vocabulary.seen):,} seen, {len(vocabulary.unseen):,} unseen"
        facts = {
            "CLIP": base or "see `config.json`",
            "images": f"{model.image_spec.size} px",
            "labels": labels,
            **{part: f"`{type(getattr(model, part)).__qualname__}`" for part in PARTS},
            "probabilities": "calibrated" if model.calibration is not None else "not calibrated",
            "stages": ", ".join(stage.name for stage in model.stages) or "none",
        }
        return ModelCard(model_card(data, source, __version__, facts, metrics))


def _download(name: str, **options: Any) -> Path | None:
    """Fetch a saved model from the Hub; `None` where the name is of something else, or cannot be had."""
    try:
        config = hf_hub_download(name, CONFIG, **options)
    except HUB_ERRORS:
        return None  # transformers, which is asked next, says why
    own = "ovml" in read_json(Path(config))
    if not own and not any(options.values()):
        return None
    try:
        return Path(snapshot_download(name, allow_patterns=DOWNLOADED, **options))
    except HUB_ERRORS as error:
        reason = first_line(error)
        raise UserError(f"{name}: the Hugging Face Hub did not give all files ({reason}); check the network") from error
