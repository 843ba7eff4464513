"""Two processes that train together, as `torchrun` starts them."""

import os
from contextlib import contextmanager

import torch
from torch import distributed, multiprocessing


@contextmanager
def process_group(rank, folder):
    """Join the other process; Lightning's trainers find it."""
    torch.set_num_threads(1)
    local = {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    for name, value in {**local, "RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        os.environ[name] = str(value)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def exit_codes(worker, *arguments, longest=300):
    """Run `worker(rank, *arguments)` in two processes, of which either may end before the other."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(longest)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes
