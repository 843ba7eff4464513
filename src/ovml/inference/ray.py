"""Tagging on many machines with Ray Data; the result is a folder of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ovml.inference.ray_plan import Plan, make_plan
from ovml.inference.ray_stages import Scorer, TaggerOptions, read_rows, sorted_digests, write_rows
from ovml.inference.tag_output import Written, check_settings
from ovml.utils.console import utf8
from ovml.utils.errors import UserError
from ovml.utils.find_images import find_images

__all__ = ["TaggerOptions", "tag_with_ray"]

SETTINGS = "_settings.json"
"""Starts with an underscore, so that Parquet readers of the folder skip it."""
ROWS_PER_FILE = 2048
BATCHES_AT_ONCE = 8
"""Batches that a model scores at one call."""
BLOCK_BYTES = 2**25
"""Bytes of a block of images, at most: 220 at 224 pixels."""


def tag_with_ray(
    images: str | Path,
    options: TaggerOptions,
    out: str | Path,
    workers: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
    on_rows: Callable[[Written], None] | None = None,
) -> Written:
    """Tag images with one model per device of a Ray cluster; tasks on all its cores read them (`ray_plan`).

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
    out, tagger = Path(out).absolute(), options.tagger("cpu")
    settings = tagger.settings()
    if Path(options.model).exists():
        options = options._replace(model=str(Path(options.model).absolute()))
    out.mkdir(parents=True, exist_ok=True)
    for path in out.glob("*.parquet"):
        # On some file systems even a renamed file may be incomplete.
        if overwrite or _names(path) is None:
            path.unlink()
    done = [name for path in out.glob("*.parquet") for name in _names(path) or ()]
    check_settings(out, out / SETTINGS, settings, begun=bool(done))

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    device = device or ("cuda" if any(node.get("GPU") for node in nodes) else "cpu")
    plan = make_plan(nodes, device, workers)
    written = Written(len(done), len(done), 0)
    dataset, num_rows = _dataset(ray, Path(images), plan, done)
    if not num_rows:
        return written
    dataset = _bounded(ray, dataset, plan)
    reading = {"processor": tagger.model.image_processor, "root": Path.cwd()}
    if done and not _lists_paths(Path(images)):
        reading["done"] = ray.put(sorted_digests(done))  # one copy on each machine
    dataset = _read(ray, dataset, plan, reading, options.num_workers).map_batches(
        Scorer,
        batch_format="pyarrow",
        batch_size=BATCHES_AT_ONCE * options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=plan.workers, max_tasks_in_flight_per_actor=2),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
        fn_constructor_args=(options, device, plan.threads),
    )
    dataset = dataset.map_batches(
        write_rows,
        batch_format="pyarrow",
        batch_size=_batch_size(num_rows, plan.workers),
        compute=ray.data.TaskPoolStrategy(size=plan.workers),
        num_cpus=0,  # small and quick: it must not wait for readers
        fn_kwargs={"out": out},
    )
    for counts in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows, errors = (sum(counts[name].to_pylist()) for name in ("rows", "errors"))
        written = written._replace(rows=written.rows + rows, errors=written.errors + errors)
        if on_rows is not None:
            on_rows(written)
    return written


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


def _bounded(ray: Any, dataset: Any, plan: Plan) -> Any:
    """Let readers wait for the models: Ray keeps no more blocks of images than the plan allows."""
    dataset.context.target_max_block_size = BLOCK_BYTES
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=2 * plan.blocks * BLOCK_BYTES)
    dataset.context.execution_options.resource_limits = limits
    return dataset


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


def _read(ray: Any, dataset: Any, plan: Plan, reading: dict[str, Any], readers: int | None = None) -> Any:
    """Read the images of a Ray data set in tasks of their own."""
    return dataset.map_batches(
        read_rows,
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(size=readers or plan.readers),
        num_cpus=plan.reader_cpus,
        fn_kwargs=reading,
        # What a reader takes and makes. Ray would also run steps that reserve the same in one process.
        memory=2 * BLOCK_BYTES,
    )


def _lists_paths(images: Path) -> bool:
    """Whether the input is a folder of images or a file of paths, and not Parquet."""
    return images.suffix.lower() != ".parquet" and not (images.is_dir() and any(images.glob("*.parquet")))


def _dataset(ray: Any, images: Path, plan: Plan, done: Sequence[str]) -> tuple[Any, int]:
    """Read the input as a Ray data set; returns it and its number of rows, of paths without those done."""
    import pyarrow.compute
    import pyarrow.dataset

    if not images.exists():
        raise UserError(f"{images}: no such file or folder; check the path")
    if not _lists_paths(images):
        stored = pyarrow.dataset.dataset(images)
        schema = stored.schema
        columns = [name for name in ("image", "image_id") if name in schema.names]
        if "image" not in columns or (columns == ["image"] and pyarrow.types.is_binary(schema.field("image").type)):
            raise UserError(
                f"{images}: has the columns {', '.join(schema.names)}; 'image' is needed, and 'image_id' where an "
                "image is bytes"
            )
        dataset = ray.data.read_parquet(str(images.absolute()), num_cpus=plan.reader_cpus)
        return dataset.select_columns(columns), stored.count_rows()
    table = _paths(images)
    if done:
        left = pyarrow.compute.invert(pyarrow.compute.is_in(table["image_id"], pyarrow.array(done, pyarrow.string())))
        table = table.filter(left)
    size = _batch_size(len(table), plan.workers)
    # At least one block, which tells the columns.
    return ray.data.from_arrow([table.slice(i, size) for i in range(0, max(len(table), 1), size)]), len(table)


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
