"""NUS-WIDE: Flickr images with 925 seen labels (tags) and 81 unseen labels (human-annotated concepts)."""

from __future__ import annotations

from pathlib import Path

from ovml.data.base import Split
from ovml.data.cache import Table
from ovml.data.folder import FolderDataModule
from ovml.data.hub.load import is_hub_name
from ovml.data.nuswide.files import SOURCE, OfficialFiles
from ovml.data.nuswide.h5 import H5Files, h5_file
from ovml.data.nuswide.rows import ANNOTATIONS_ONLY, COMBINE, SavedRows
from ovml.utils.errors import UserError
from ovml.vocabulary import LabelVocabulary


class NUSWIDEDataModule(FolderDataModule):
    """NUS-WIDE (Chua et al., CIVR 2009): 161,789 training and 107,859 test images from Flickr.

    The 925 seen labels are the 1,000 most frequent tags except those among the 81 concepts; the 81 unseen labels are
    the concepts, which people annotated for every image. The files in `root` decide which of these layouts is read:

    1. The official distribution: `ImageList/{Imagelist,TrainImagelist,TestImagelist}.txt`,
       `NUS_WID_Tags/{TagList1k.txt,Train_Tags1k.dat,Test_Tags1k.dat}` (or `AllTags1k.txt`),
       `Groundtruth/TrainTestLabels` (or `AllLabels`), `Concepts81.txt` and the images `Flickr/<tag>/<n>_<id>.jpg`.
    2. The files of BiAM and MKT: `features/nus_wide_{train,test}.h5`, `img_names.pkl`, `test_img_names.pkl`,
       `Concepts925.txt`, `Concepts81.txt` and the same images. They need `pip install 'ovml[nuswide]'`.
    3. Rows of Hugging Face `datasets`: a folder that `DatasetDict.save_to_disk` wrote, or the name of a set on the
       Hub (`owner/name`), with splits `train` and `test`, columns `image` and `positive` (names or ids of labels) and,
       if there are any, `negative` and `image_id`; beside them `Concepts925.txt` and `Concepts81.txt`.

    If 1 and 2 are in one folder, 1 is read. See docs/data/nuswide.md.

    Args:
        root: Folder of the data set, or its name on the Hub.
        kwargs: See `FolderDataModule`.

    Raises:
        UserError: `root` is not a folder, or has none of the three layouts.

    Example:
        ```yaml
        data:
          class_path: ovml.data.NUSWIDEDataModule
          init_args:
            root: /data/NUS-WIDE
            batch_size: 64
        ```
    """

    title = "NUS-WIDE"
    source = SOURCE
    has_validation = False
    # A failed download leaves a text page or Flickr's "photo unavailable" image, always the same bytes.
    min_bytes = 4001
    placeholder_copies = 5

    def check_root(self) -> None:
        """Find the layout of the root.

        Raises:
            UserError: It has none of the layouts.
        """
        self.layout = find_layout(self.root, self.cache_dir)

    @property
    def vocabulary(self) -> LabelVocabulary:
        """The seen labels in the order of the tag list, then the 81 concepts."""
        return self.layout.vocabulary

    @property
    def exhaustive(self) -> bool:  # type: ignore[override]
        """Whether labels that a row does not list are absent; only layouts 2 and 3 may have unknown labels."""
        return self.layout.exhaustive

    def read_annotations(self, split: Split) -> Table:
        """Rows of a split, in the order of its image list; training rows have the concepts too."""
        return self.layout.table(split)


def find_layout(root: Path, cache_dir: str | None) -> OfficialFiles | H5Files | SavedRows:
    """Recognise the layout of a folder by its files.

    Raises:
        UserError: It has no layout of NUS-WIDE.
    """
    if root.as_posix() == ANNOTATIONS_ONLY and not root.is_dir():
        raise UserError(f"{COMBINE}; see {SOURCE} for the rest")
    if not root.is_dir() and not is_hub_name(root):
        raise UserError(f"{root}: no such folder; root=FOLDER is the folder of NUS-WIDE; download it from {SOURCE}")
    if not root.is_dir() or any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return SavedRows(root, cache_dir)
    if (root / "ImageList" / "TrainImagelist.txt").is_file():
        return OfficialFiles(root.absolute(), cache_dir)
    if any(h5_file(root, split).is_file() for split in ("train", "test")):
        return H5Files(root.absolute(), cache_dir)
    if any((root / name).is_dir() for name in ("ImageList", "NUS_WID_Tags", "Groundtruth")):
        return OfficialFiles(root.absolute(), cache_dir)
    if (root / "NUS_WID_Tags.zip").is_file():
        raise UserError(f"{root}: {COMBINE} ({SOURCE})")
    raise UserError(
        f"{root}: no NUS-WIDE here; expected ImageList/TrainImagelist.txt (the official distribution), "
        f"features/nus_wide_train.h5 (that of BiAM and MKT) or dataset_dict.json (saved by datasets); "
        f"download it from {SOURCE}"
    )
