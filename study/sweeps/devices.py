"""The GPU of a process: each process of a machine takes a different one.

A process locks a file that is named after the UUID of its GPU, because the number of a GPU depends
on ``CUDA_VISIBLE_DEVICES``. The system frees the lock when the process ends. A process that sees
one GPU, as in jobs of Slurm and Ray, trains on it without a lock. Under torchrun, a process takes
the GPU with its number on the machine (``train.shard``).
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence

import torch

from study.errors import StudyError
from study.store import Lock
from study.store.cache import cache_folder
from study.store.files import make_folder
from study.sweeps import signals
from study.training.devices import choose_device

_POLL = 0.5
"""Seconds between two looks for a free GPU."""


def count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def claim_device(
    name: str, must_stop: Callable[[], bool], held: contextlib.ExitStack
) -> torch.device | None:
    """The device of ``device=name``, claimed until ``held`` is closed, and made current. None if
    ``must_stop`` ended the wait for a free GPU."""
    if choose_device(name).type == "cpu":
        return torch.device("cpu")
    visible = visible_gpus()
    gpus, sharded = visible, count() > 1
    if sharded:
        number = int(os.environ["LOCAL_RANK"])
        gpus = visible[number : number + 1]
    if not gpus:
        raise StudyError(
            f"torchrun has started more processes on this machine than the {len(visible)} GPUs "
            "that torch sees: lower --nproc-per-node"
        )
    found = _free(gpus, held)
    if found is None and len(visible) == 1:
        found = gpus[0][0]  # there is no other
    if found is None:
        names = ", ".join(str(device) for device, _ in gpus)
        if sharded:
            raise StudyError(
                f"another process trains on {names}: wait until it has ended, or choose other GPUs "
                "with CUDA_VISIBLE_DEVICES"
            )
        signals.say(
            f"study: waiting for a GPU: other processes hold {names}; one process per GPU is "
            "enough (hydra.launcher.n_jobs)"
        )
    while found is None:
        if must_stop():
            return None
        time.sleep(_POLL)
        found = _free(gpus, held)
    torch.cuda.set_device(found)
    return found


def visible_gpus() -> list[tuple[torch.device, str]]:
    """The GPUs that torch sees, which ``CUDA_VISIBLE_DEVICES`` orders, with their UUIDs."""
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [(d, str(torch.cuda.get_device_properties(d).uuid)) for d in devices]


def _free(
    gpus: Sequence[tuple[torch.device, str]], held: contextlib.ExitStack
) -> torch.device | None:
    """The first GPU that no other process holds. Its lock is held from now on."""
    folder = cache_folder() / "gpus"
    make_folder(folder)
    for device, uuid in gpus:
        with contextlib.suppress(TimeoutError):
            held.enter_context(Lock(folder / f"{uuid}.lock", timeout=0))
            return device
    return None
