"""Tagging on many machines with Ray Data; the result is a folder of Parquet files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ovml.inference.tag_files import tag_row, write_parquet
from ovml.inference.tag_output import Written, check_settings
from ovml.inference.tagger import Tagger
from ovml.model import OpenVocabularyModel
from ovml.utils.console import utf8
from ovml.utils.errors import UserError
from ovml.utils.files import atomic_write
from ovml.utils.find_images import find_images
from ovml.utils.images import ImageLike
from ovml.vocabulary import LabelVocabulary

SETTINGS = "_settings.json"
"""Starts with an underscore, so that Parquet readers of the folder skip it."""
ROWS_PER_FILE = 2048


class TaggerOptions(NamedTuple):
    """Model and settings of a `Tagger`, as values that can be sent to other machines.

    Attributes:
        model: Name of the model; every machine must be able to load it.
        load: Loads a model by name, such as `ovml.saving.load_model`.
        labels: Label names or a vocabulary. Default: the model's own.
        prompt: One template or several.
    """

    model: str
    load: Callable[[str], OpenVocabularyModel]
    labels: Sequence[str] | LabelVocabulary | None = None
    top_k: int | None = 5
    threshold: float | Literal["calibrated"] | None = None
    prompt: str | Sequence[str] | None = None
    batch_size: int = 32
    num_workers: int | None = None
    probabilities: bool = False
    exclusive: Sequence[Sequence[str]] = ()
    floor: Sequence[str] = ()

    def tagger(self, device: str) -> Tagger:
        """Load the model to a device and make the tagger."""
        settings = self._asdict()
        load, name = settings.pop("load"), settings.pop("model")
        return Tagger(load(name).to(device), **settings)


def tag_with_ray(
    images: str | Path,
    options: TaggerOptions,
    out: str | Path,
    workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    on_rows: Callable[[Written], None] | None = None,
) -> Written:
    """Tag images with one model per device of a Ray cluster.

    The rows are those of `Tagger.write`, in any order, and files in the folder are always complete. A second run with
    the same settings skips images that are in the folder, so the same call resumes an interrupted run, also on another
    cluster. Images and `out` must be visible to all machines under the same path.

    Args:
        images: A folder of images, a text file of paths, one a line, or Parquet (a file or a folder of files) with a
            column `image` (paths, or structs of `bytes` and `path` as Hugging Face `datasets` writes them, or bytes)
            and, where that holds no path, a column `image_id`. Names of images must differ.
        options: Model, labels and settings.
        out: Folder of Parquet files; it is made if it is missing.
        workers: Number of models that run at once. Default: one per GPU, or one per machine if there is no GPU.
        device: Torch device of each. Default: `cuda` if the cluster has GPUs; each worker then gets one.
        overwrite: Delete the Parquet files in `out` and start over.
        on_rows: Called with the counts so far, after each file.

    Raises:
        UserError: Ray is not installed, there are no images, the options are invalid, or `out` was begun with other
            settings.
    """
    ray = _ray()
    out, settings = Path(out).absolute(), options.tagger("cpu").settings()
    if Path(options.model).exists():
        options = options._replace(model=str(Path(options.model).absolute()))
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob("*.parquet"):
        # On some file systems even a renamed file may be incomplete.
        if overwrite or _names(path) is None:
            path.unlink()
    done = len(_done(out))
    check_settings(out, out / SETTINGS, settings, begun=done > 0)

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1)
    device = device or ("cuda" if gpus else "cpu")
    workers = workers or (gpus if device == "cuda" else len([n for n in ray.nodes() if n["Alive"]]))
    # One core stays free for the tasks that read the input: workers keep theirs to the end.
    share = (cpus - 1) / workers
    dataset, num_rows = _dataset(ray, Path(images), workers)
    dataset = dataset.map_batches(
        _Worker,
        batch_format="pyarrow",
        batch_size=_batch_size(num_rows, workers),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=int(share) or int(100 * share) / 100,
        num_gpus=1 if device == "cuda" else 0,
        fn_constructor_args=(options, device, Path.cwd(), out),
    )
    written = Written(done, done, 0)
    for counts in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows, errors = (sum(counts[name].to_pylist()) for name in ("rows", "errors"))
        written = written._replace(rows=written.rows + rows, errors=written.errors + errors)
        if on_rows is not None:
            on_rows(written)
    return written


class _Worker:
    """A model on one device that writes a Parquet file for each batch of rows.

    Args:
        options: Model, labels and settings.
        device: Torch device.
        root: Folder that image paths are relative to.
        out: Output folder; images that are in it are skipped.
    """

    def __init__(self, options: TaggerOptions, device: str, root: Path, out: Path) -> None:
        self.tagger = options.tagger(device)
        self.root = root
        self.out = out
        self.done = set(_done(out))

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        left = [(name, image) for name, image in _images(table, self.root) if name not in self.done]
        names = [name for name, _ in left]
        tagged = self.tagger.tag((image for _, image in left), on_error="row")
        rows = [tag_row(name, result) for name, (_, result) in zip(names, tagged, strict=True)]
        if rows:
            # If Ray repeats a batch because a machine was lost, the file is overwritten.
            digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:32]
            with atomic_write(self.out / f"{digest}.parquet") as beside:
                write_parquet(rows, beside)
        return pa.table({"rows": [len(rows)], "errors": [sum(row["error"] is not None for row in rows)]})


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray sends usage statistics
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("tagging on Ray needs Ray Data, which is not installed; pip install 'ovml[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    return ray


def _done(out: Path) -> list[str]:
    """Names of the images in a folder of Parquet files."""
    return [name for path in out.glob("*.parquet") for name in _names(path) or ()]


def _names(path: Path) -> list[str] | None:
    """Names of the images in a Parquet file; `None` if it is incomplete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.read_table(path, columns=["image"])["image"].to_pylist()
    except (pa.ArrowInvalid, OSError):
        return None
    return names


def _batch_size(num_rows: int, workers: int) -> int:
    """Rows per batch: few enough that all workers finish at about the same time."""
    return max(1, min(ROWS_PER_FILE, -(-num_rows // (4 * workers))))


def _dataset(ray: Any, images: Path, workers: int) -> tuple[Any, int]:
    """Read the input as a Ray data set; returns it and its number of rows."""
    import pyarrow.dataset

    if not images.exists():
        raise UserError(f"{images}: no such file or folder; check the path")
    if images.suffix.lower() == ".parquet" or (images.is_dir() and any(images.glob("*.parquet"))):
        stored = pyarrow.dataset.dataset(images)
        schema = stored.schema
        columns = [name for name in ("image", "image_id") if name in schema.names]
        if "image" not in columns or (columns == ["image"] and pyarrow.types.is_binary(schema.field("image").type)):
            raise UserError(
                f"{images}: has the columns {', '.join(schema.names)}; 'image' is needed, and 'image_id' where an "
                "image is bytes"
            )
        return ray.data.read_parquet(str(images.absolute())).select_columns(columns), stored.count_rows()
    table = _paths(images)
    size = _batch_size(len(table), workers)
    return ray.data.from_arrow([table.slice(start, size) for start in range(0, len(table), size)]), len(table)


def _paths(images: Path) -> Any:
    """Arrow table of names and paths of the images in a folder or a file of paths."""
    import pyarrow as pa

    # File names may hold any bytes; Arrow strings are UTF-8.
    if images.is_dir():
        paths = [os.fsencode(path) for path in find_images([images])]
    else:
        paths = [path for line in images.read_bytes().split(b"\n") if (path := line.rstrip(b"\r"))]
    names = pa.array([utf8(os.fsdecode(path)) for path in paths], pa.string())
    places = pa.StructArray.from_arrays([pa.array(paths, pa.binary())], ["path"])
    if not paths:
        raise UserError(f"{images}: lists no image; give paths, one a line")
    return pa.table({"image_id": names, "image": places})


def _images(table: Any, root: Path) -> Iterator[tuple[str, ImageLike]]:
    """Yield name and image of each row of an Arrow table."""
    ids = table["image_id"].to_pylist() if "image_id" in table.column_names else [None] * len(table)
    for name, value in zip(ids, table["image"], strict=True):
        image = value.as_py()
        path = image
        if isinstance(image, dict):
            path = os.fsdecode(image["path"]) if image.get("path") is not None else None
            image = image.get("bytes") or path
        name = str(utf8(path) if name is None else name)
        # b"" for a row without an image: reading it gives the error of the row.
        yield name, root / image if isinstance(image, str) else image or b""
