"""Workers without Ray: processes on this machine with a group of their own, for measurements and tests."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from foundation.sharded.accelerator import BACKENDS, device_of
from foundation.sharded.config import Accelerator
from foundation.sharded.group import Group

# CUDA works in no child of a process that has touched it, and importing the packages' CUDA builds does.
_CONTEXT: Any = multiprocessing.get_context("spawn" if torch.version.cuda else "forkserver")
if not torch.version.cuda:
    _CONTEXT.set_forkserver_preload(["foundation.sharded.trainer"])


class WorkerFailed(RuntimeError):
    """A worker raised; the message is its traceback."""


def start(
    count: int,
    job: Callable[..., Any],
    *arguments: Any,
    patience: timedelta = timedelta(minutes=30),
    accelerator: Accelerator = "cpu",
) -> list:
    """What ``job(group, *arguments)`` returned on each of ``count`` workers of one thread each.

    Args:
        job: a function of a module that can be imported; its arguments and results are pickled.
        patience: how long a worker waits for another's part of an exchange.
        accelerator: on what they compute, each on a device of its own.

    Raises:
        WorkerFailed: one has raised, or ended without a word.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(count):
            mine, theirs = _CONTEXT.Pipe(duplex=False)
            given = (rank, count, f"file://{folder}/store", patience, accelerator, theirs, job, arguments)
            process = _CONTEXT.Process(target=_work, args=given)
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        outcomes = [_outcome(pipe) for pipe in pipes]
        for process in processes:
            process.join()
    failures = [said for failed, said in outcomes if failed]
    if failures:
        raise WorkerFailed("\n".join(failures))
    return [said for _, said in outcomes]


def _outcome(pipe: Any) -> tuple[bool, Any]:
    try:
        return pipe.recv()
    except EOFError:
        return True, "a worker ended without a word"


def _work(
    rank: int,
    count: int,
    store: str,
    patience: timedelta,
    accelerator: Accelerator,
    pipe: Any,
    job: Callable[..., Any],
    arguments: tuple,
) -> None:
    torch.set_num_threads(1)
    said: tuple[bool, Any]
    try:
        device = device_of(accelerator, rank)
        dist.init_process_group(BACKENDS[accelerator], init_method=store, rank=rank, world_size=count, timeout=patience)
        said = (False, job(Group(device=device), *arguments))
    except Exception:
        said = (True, traceback.format_exc())
    pipe.send(said)
    pipe.close()
    if dist.is_initialized():
        dist.destroy_process_group()
