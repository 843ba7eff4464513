"""Loading, saving and sharing a classifier."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from huggingface_hub import ModelHubMixin
from typing_extensions import Self

from ovml.model import OpenVocabularyModel
from ovml.saving.save import card_options, check_savable, hub_errors, save_model
from ovml.training.objective import Objective
from ovml.training.restore import check_lightning_options, load_classifier, restore_checkpoint


class PretrainedClassifier(pl.LightningModule, ModelHubMixin):
    """Base class of `OVMultiLabelClassifier`: how it is loaded from files and the Hub, and saved there.

    Attributes:
        model: The model.
        objective: The loss and the distillation, whose weights are saved too.
    """

    model: OpenVocabularyModel
    objective: Objective

    @property
    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """How the model is trained and evaluated, as plain data."""

    @classmethod
    def from_checkpoint(cls, path: str | Path, **arguments: Any) -> Self:
        """Load a classifier from a checkpoint that `ovml fit` or a `Trainer` wrote; see `from_pretrained`."""
        return restore_checkpoint(cls, path, arguments)  # type: ignore[type-var]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **arguments: Any,
    ) -> Self:
        """Load a classifier by Lightning's name for `from_checkpoint`.

        Lightning's own method would make a class that the file names, and miss the frozen weights.

        Args:
            checkpoint_path: The checkpoint.
            map_location: Device of the classifier. Default: the CPU.
            hparams_file: Not supported, as are `strict=False` and `weights_only=False`.
            strict: See `hparams_file`.
            weights_only: See `hparams_file`.
            arguments: Constructor arguments in the place of the saved ones.

        Raises:
            UserError: See `from_pretrained`; or an option is not supported.
        """
        check_lightning_options(map_location, hparams_file, strict, weights_only)
        classifier = cls.from_checkpoint(checkpoint_path, **arguments)
        return classifier if map_location is None else classifier.to(map_location)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Load a classifier, in evaluation mode. Nothing in the files is executed; see `ovml.saving.load_model`.

        Args:
            name: A folder that `save_pretrained` wrote, a name on the Hugging Face Hub, a run folder or checkpoint of
                `ovml fit`, or a plain CLIP checkpoint, which is then used zero-shot.
            options: Constructor arguments in the place of the saved ones; or `revision`, `token`, `cache_dir`,
                `force_download` and `local_files_only` of the Hub.

        Raises:
            UserError: There is no such model, or it is not complete, or one of its parts cannot be made here.
        """
        return load_classifier(cls, str(name), options).eval()  # type: ignore[type-var]

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """Write the model into a folder, which appears when it is complete; see `ovml.saving.save_model`.

        Args:
            save_directory: A new or empty folder, or one that holds nothing but a saved model.
            options: `metrics` and `repo_id` for the model card.
        """
        save_model(self.model, save_directory, self.recipe, self.objective.state_dict(), **card_options(options))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload the model to the Hugging Face Hub, in one commit; returns its address.

        Args:
            repo_id: `owner/name`; the repository is made where it is not there.
            options: `metrics` for the model card; `private`, `token`, `branch`, ...: see `huggingface_hub`.

        Raises:
            UserError: A part cannot be described, or the Hub does not take the model.
        """
        card = {"metrics": options.pop("metrics", None), "repo_id": repo_id}
        check_savable(self.model, self.recipe, card["metrics"])  # before a repository is made
        with hub_errors(repo_id):
            return str(super().push_to_hub(repo_id, model_card_kwargs=card, **options))
