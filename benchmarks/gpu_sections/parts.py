"""D, E and F: the head, the ranking loss, and which kernels attention takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from gpu_sections.base import Bench, Case, Run, label_names
from gpu_sections.measure import is_kernel, profiled

ATTENTION = ("attention", "flash", "fmha", "softmax", "sdp")
"""Parts of the names of kernels that compute attention."""


def head(bench: Bench) -> Iterator[Case]:
    """`TwoStreamHead`, its product and its choice of patches apart, and `QueryHead`."""
    sizes = bench.sizes
    batch = sizes.batches[0]
    for labels, figure in ((sizes.seen, "0.25 ms of products, topk 0.3-1 ms"), (sizes.large, "2 ms, topk 3-8 ms")):
        step = partial(_two_stream, bench, batch, labels, True)
        yield Case(f"two-stream head, {batch} x {labels:,}, with backward", figure, step, {"images/s": batch})
    for images, labels, figure in (
        (sizes.batches[-1], sizes.large_all, "8.7 ms of products, topk 13-32 ms"),
        (max(batch // 2, 1), sizes.huge, "14 ms of products, topk 22-55 ms"),
    ):
        step = partial(_two_stream, bench, images, labels, False)
        yield Case(f"two-stream head, {images} x {labels:,}", figure, step, {"images/s": images})
    rows = batch * sizes.seen
    yield Case(f"product of {batch} x {sizes.seen:,}", "0.25 ms", partial(_similarities, bench, batch, sizes.seen))
    for name, figure in (("topk", "0.3-1 ms"), ("topk in bf16", "-"), ("sort", "-")):
        yield Case(f"{name} of {rows:,} rows of {sizes.patches}", figure, partial(_choice, bench, name, rows))
    query = partial(_query, bench, batch, sizes.seen)
    yield Case(f"query head, {batch} x {sizes.seen:,}, with backward", "20 ms in fp32", query, {"images/s": batch})


def _top_k(bench: Bench) -> int:
    return 3 if bench.sizes.toy else 16


def _inputs(bench: Bench, images: int, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Global features, patches and label embeddings."""
    shapes = (images, bench.width), (images, bench.sizes.patches, bench.width), (labels, bench.width)
    return tuple(nn.functional.normalize(bench.randn(*shape), dim=-1) for shape in shapes)  # type: ignore[return-value]


def _two_stream(bench: Bench, images: int, labels: int, backward: bool) -> Run:
    from ovml.encoders import ImageFeatures
    from ovml.heads import TwoStreamHead

    torch.set_float32_matmul_precision("highest")
    head = TwoStreamHead(_top_k(bench)).bind(bench.width).to(bench.device)
    whole, patches, embeds = (x.requires_grad_(backward) for x in _inputs(bench, images, labels))

    def run() -> None:
        with torch.set_grad_enabled(backward):
            logits = head(ImageFeatures(whole, patches), embeds)
        if backward:
            logits.square().mean().backward()

    return run


def _similarities(bench: Bench, images: int, labels: int) -> Run:
    torch.set_float32_matmul_precision("highest")
    _, patches, embeds = _inputs(bench, images, labels)
    return lambda: patches @ embeds.T


def _choice(bench: Bench, name: str, rows: int) -> Run:
    scores = bench.randn(rows, bench.sizes.patches, dtype=torch.bfloat16 if "bf16" in name else torch.float32)
    k = _top_k(bench)
    return (lambda: scores.sort(dim=-1, descending=True)) if name == "sort" else (lambda: scores.topk(k, dim=-1))


def _query(bench: Bench, images: int, labels: int) -> Run:
    from ovml.encoders import ImageFeatures
    from ovml.heads import QueryHead

    head = QueryHead(num_heads=2 if bench.sizes.toy else 8).bind(bench.width).to(bench.device)
    whole, patches, embeds = _inputs(bench, images, labels)
    return lambda: head(ImageFeatures(whole, patches), embeds).square().mean().backward()


def ranking(bench: Bench) -> Iterator[Case]:
    """The ranking loss against a dense comparison; scores so near each other that nearly all pairs violate."""
    batch, sizes = bench.sizes.batches[0], bench.sizes
    for labels, ours, dense in ((sizes.seen, "0.6-1.0 ms", "0.25 ms"), (sizes.large, "0.8-2 ms", "0.3 ms")):
        name = f"{batch} x {labels:,}, with backward"
        yield Case(f"ranking loss, {name}", f"{ours}; 60 operators, 4 waits", partial(_ranking, bench, labels, True))
        yield Case(f"dense comparison, {name}", dense, partial(_ranking, bench, labels, False))
    yield Case(f"gradient of {batch} x {sizes.large:,} twice", "the same bits", partial(_same_bits, bench))


def _ranking(bench: Bench, labels: int, ours: bool) -> Run:
    from ovml.losses import ranking_loss

    logits, targets = _scores(bench, labels)
    loss = ranking_loss if ours else dense_ranking_loss

    def run() -> None:
        logits.grad = None
        loss(logits, targets).backward()

    return run


def _scores(bench: Bench, labels: int) -> tuple[Tensor, Tensor]:
    batch = bench.sizes.batches[0]
    return (0.03 * bench.randn(batch, labels)).requires_grad_(), bench.targets(batch, labels)


def dense_ranking_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`ranking_loss` by comparing all pairs, `[B, K, L]` for the at most `K` present labels of an image."""
    present = targets == 1
    most = int(present.sum(1).max())
    columns = present.to(torch.int8).topk(most).indices
    thresholds = (1 - logits.gather(1, columns)).masked_fill(~present.gather(1, columns), -torch.inf)
    differences = thresholds.unsqueeze(2) + logits.unsqueeze(1)
    violations = differences.masked_fill((targets != 0).unsqueeze(1), 0).clamp(min=0)
    return (violations.sum((1, 2)) / ((violations > 0).sum((1, 2)) + 1e-8)).mean()


def _same_bits(bench: Bench) -> Run:
    from ovml.losses import ranking_loss

    logits, targets = _scores(bench, bench.sizes.large)

    def run() -> dict[str, object]:
        gradients = [torch.autograd.grad(ranking_loss(logits, targets), logits)[0] for _ in range(2)]
        return {"the same bits": "yes" if torch.equal(*gradients) else "no"}

    return run


def kernels(bench: Bench) -> Iterator[Case]:
    """Kernels of attention by name; `math` or a softmax beside `bmm` is a finding."""
    blocks = {
        "vision tower": ("flash or cuDNN, no mask", "mem-efficient"),
        "text tower, one text": ("flash or cuDNN, causal", "mem-efficient"),
        "text tower, shared prefix": ("mem-efficient, masked", "mem-efficient"),
    }
    for tower, (in_bf16, in_fp32) in blocks.items():
        for mixed, figure in ((True, in_bf16), (False, in_fp32)):
            name = f"{tower}, {'bf16-mixed' if mixed else '32-true'}"
            yield Case(name, figure, partial(_kernels, bench, tower, mixed))


def _kernels(bench: Bench, tower: str, mixed: bool) -> Run:
    model = bench.model()
    pixels = bench.randn(bench.sizes.batches[0], 3, bench.side, bench.side)
    names = tuple(label_names(1 if "one" in tower else bench.sizes.seen))

    @torch.no_grad()
    def call() -> None:
        with bench.mixed(mixed):
            model.encode_images(pixels) if "vision" in tower else model.prompt(names)

    def run() -> dict[str, object]:
        call()
        cuda = bench.device.type == "cuda"
        events = [event for event in profiled(call, cuda) if is_kernel(event) or not cuda]
        found = {event.name for event in events if any(part in event.name.lower() for part in ATTENTION)}
        return {"kernels of that name": ", ".join(sorted(name[:60] for name in found)) or "none with such a name"}

    return run
