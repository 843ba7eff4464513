"""Each section in a process of its own: an error, a crash or a hang of one leaves the others."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from gpu_sections.base import Bench, Section, Sizes
from gpu_sections.measure import measured

FORK = multiprocessing.get_context("fork")  # what the parent imported is not imported again; it runs nothing on a GPU


def run_section(
    section: Section, sizes: Sizes, device: str, seconds: float, on_row: Callable[[dict[str, Any]], None]
) -> tuple[str, str]:
    """Run the cases of a section in a child process.

    Args:
        section: Gives the cases.
        sizes: Their sizes.
        device: Name of a torch device.
        seconds: After so many the child is killed.
        on_row: Called with each row as soon as it is measured.

    Returns:
        The device in words, and how the section ended: `whole`, or what went wrong.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    scratch = tempfile.mkdtemp()
    gc.freeze()  # the child's collector passes over what the parent has imported
    child = FORK.Process(target=_child, args=(section, sizes, device, sender, scratch))
    child.start()
    sender.close()
    end, words = time.monotonic() + seconds, ""
    try:
        while receiver.poll(max(0, end - time.monotonic())):
            kind, content = receiver.recv()
            if kind == "end":
                return words, content
            if kind == "device":
                words = content
            else:
                on_row(content)
        return words, f"cut off after {seconds:.0f} s"
    except EOFError:
        child.join()
        return words, f"the process ended with {child.exitcode}"
    finally:
        receiver.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)  # with the workers of its loaders
        child.kill()
        child.join()
        shutil.rmtree(scratch, ignore_errors=True)


def _child(section: Section, sizes: Sizes, device: str, sender: Connection, scratch: str) -> None:
    os.setpgid(0, 0)
    os.dup2(2, 1)  # progress bars and notices do not stand between the results
    tempfile.tempdir = os.environ["TMPDIR"] = scratch
    try:
        bench = Bench(sizes, torch.device(device))
        sender.send(("device", torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"))
        for case in section(bench):
            sender.send(("row", measured(case, bench)))
        sender.send(("end", "whole"))
    except Exception as error:  # told beside the table
        sender.send(("end", f"{type(error).__name__}: {error}"))
