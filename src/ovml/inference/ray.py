"""Tagging over many machines, on Ray Data: images in, a folder of Parquet files out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ovml.inference.tag_files import TagRow, arrow_table, read_parquet, utf8, write_parquet
from ovml.inference.tag_output import Written, check_settings
from ovml.inference.tagger import Tagger, load_model
from ovml.utils.errors import UserError
from ovml.utils.images import ImageLike, find_images
from ovml.vocabulary import LabelVocabulary

if TYPE_CHECKING:
    import pyarrow as pa

SETTINGS = "_settings.json"
"""Begins with an underscore, so that readers of the folder pass it over."""
ROWS_PER_FILE = 2048


class TaggerOptions(NamedTuple):
    """What makes a `Tagger`, as plain values that go to other machines; see there.

    Attributes:
        model: What `ovml.inference.tagger.load_model` takes; every machine must find it there.
        labels: Label names or a vocabulary. Default: the model's own.
        prompt: One template or several.
    """

    model: str
    labels: Sequence[str] | LabelVocabulary | None = None
    top_k: int | None = 5
    threshold: float | Literal["calibrated"] | None = None
    prompt: str | Sequence[str] | None = None
    batch_size: int = 32
    num_workers: int | None = None
    probabilities: bool = False

    def tagger(self, device: str) -> Tagger:
        """The tagger on a device."""
        model = load_model(self.model).to(device)
        options = self._asdict()
        del options["model"]
        return Tagger(model, **options)


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

    The rows are those of `Tagger.write`, in any order. Each file in the folder is whole or not there. A second run of
    the same settings leaves out the images that the folder has, so an interrupted run is taken up again by the same
    call, on another cluster if need be. Images and `out` must be where all machines see them, under the same path.

    Args:
        images: A folder of images, a text file of paths, one a line, or Parquet (a file or a folder of files) with a
            column `image` (paths, or structs of `bytes` and `path` as Hugging Face `datasets` writes them, or bytes)
            and, where that holds no path, a column `image_id`. Names of images must differ.
        options: Model, labels and settings.
        out: Folder of Parquet files; made where it is missing.
        workers: Models that run at once. Default: one per GPU, or one per machine where there is none.
        device: Torch device of each. Default: `cuda` where the cluster has GPUs, of which each worker then gets one.
        overwrite: Begin anew: delete the Parquet files in `out`.
        on_rows: Called with the counts so far, after each file.

    Raises:
        UserError: Ray is not installed, there are no images, the options are no good, or `out` was begun with other
            settings.
    """
    ray = _ray()
    out, settings = Path(out).absolute(), options.tagger("cpu").settings()
    if Path(options.model).exists():
        options = options._replace(model=str(Path(options.model).absolute()))
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob("*.parquet"):
        # On some file systems even a renamed file may be torn.
        if overwrite or read_parquet(path) is None:
            path.unlink()
    done = len(_done(out))
    check_settings(out, out / SETTINGS, settings, begun=done > 0)

    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1)
    device = device or ("cuda" if gpus else "cpu")
    workers = workers or (gpus if device == "cuda" else len([n for n in ray.nodes() if n["Alive"]]))
    # A core is left to the tasks that read the input: the workers never give theirs back.
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
    """A model on one device, which writes a file for each batch of rows that it is given.

    Args:
        options: Make the tagger.
        device: Where the model runs.
        root: Folder that paths of images are relative to.
        out: Folder to write to; images that it has are left out.
    """

    def __init__(self, options: TaggerOptions, device: str, root: Path, out: Path) -> None:
        self.tagger = options.tagger(device)
        self.root = root
        self.out = out
        self.done = set(_done(out))

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        left = [(name, image) for name, image in _pictures(table, self.root) if name not in self.done]
        names = [name for name, _ in left]
        tagged = self.tagger.tag((image for _, image in left), on_error="row")
        rows = [TagRow.of(name, result) for name, (_, result) in zip(names, tagged, strict=True)]
        if rows:
            # Where Ray runs a batch a second time, since a machine was lost, the file is written over.
            digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:32]
            write_parquet(arrow_table(rows), self.out / f"{digest}.parquet")
        return pa.table({"rows": [len(rows)], "errors": [sum(row.error is not None for row in rows)]})


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send statistics of use to its makers
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("tagging on Ray needs Ray Data, which is not installed; pip install 'ovml[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
    return ray


def _done(out: Path) -> list[str]:
    """Names of the images that a folder has."""
    tables = (read_parquet(path) for path in out.glob("*.parquet"))
    return [name for table in tables if table is not None for name in table["image"].to_pylist()]


def _batch_size(num_rows: int, workers: int) -> int:
    """Rows that a worker gets at once: few enough that none waits long for the last one."""
    return max(1, min(ROWS_PER_FILE, -(-num_rows // (4 * workers))))


def _dataset(ray: Any, images: Path, workers: int) -> tuple[Any, int]:
    """Images as a data set of Ray, and their number."""
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


def _paths(images: Path) -> pa.Table:
    """Names and places of the images that a folder or a file of paths has."""
    import pyarrow as pa

    def listed() -> Iterator[str]:
        with images.open("rb") as file:
            for line in file:
                if path := line.rstrip(b"\r\n"):
                    yield os.fsdecode(path)

    paths = map(str, find_images([images])) if images.is_dir() else listed()
    columns = pa.schema([("image_id", pa.string()), ("image", pa.struct([("path", pa.binary())]))])
    tables = [columns.empty_table()]
    while some := list(islice(paths, 2**14)):
        # Names may be bytes of any kind, which strings of Arrow may not.
        places = [{"path": os.fsencode(path)} for path in some]
        tables.append(pa.table({"image_id": list(map(utf8, some)), "image": places}, schema=columns))
    table = pa.concat_tables(tables).combine_chunks()
    if len(table) == 0:
        raise UserError(f"{images}: lists no image; give paths, one a line")
    return table


def _pictures(table: pa.Table, root: Path) -> Iterator[tuple[str, ImageLike]]:
    """Names and pictures of the rows of an input."""
    ids = table["image_id"].to_pylist() if "image_id" in table.column_names else [None] * len(table)
    for name, value in zip(ids, table["image"], strict=True):
        image = value.as_py()
        path = image
        if isinstance(image, dict):
            path = os.fsdecode(image["path"]) if image.get("path") is not None else None
            image = image.get("bytes") or path
        name = str(utf8(path) if name is None else name)
        # Of a row without an image the reader says that it is none.
        yield name, root / image if isinstance(image, str) else image or b""
