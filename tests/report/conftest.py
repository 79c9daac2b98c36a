"""A study on disk whose numbers are known: SGD's laws, exactly, in as many seeds as asked for."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from study.store import CellWriter

P = {"lora": 1.0, "rslora": 0.5}
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
NOTE = "linear weights rounded to 4 bits"


@pytest.fixture
def on_disk(tmp_path: Path) -> Callable[..., Path]:
    """``on_disk(seeds=(0,), ...)`` writes a study and returns its folder, ``results/known``."""

    def write(
        *,
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        ranks: Sequence[int] = (4, 32, 256),
        lrs: Sequence[float] = (1e-3,),
        optimizer: Mapping[str, Any] | None = None,
        lazy: Callable[[Mapping[str, Any]], float] = lambda cell: 1.0,
        clip: Callable[[Mapping[str, Any]], float] = lambda cell: 1.0,
        status: Callable[[Mapping[str, Any]], str] = lambda cell: "complete",
        gradient: float = 1e-2,
        steps: int = 200,
        model: str = "known",
        record: Mapping[str, Any] | None = None,
    ) -> Path:
        """``lazy``, ``clip`` and ``status`` are asked of each cell: actual over linearised loss change, the factor that
        gradients were multiplied by, how it ended."""
        folder = tmp_path / "results" / "known"
        for number, (scaling, rank, lr, seed) in enumerate(itertools.product(P, ranks, lrs, seeds)):
            cell = {"scaling": scaling, "rank": rank, "lr": lr, "seed": seed}
            gamma = 16 * rank ** -P[scaling]
            config = {
                "adapter": {
                    "rank": rank,
                    "scaling": scaling,
                    "exponent": None,
                    "alpha": 16.0,
                    "init": "kaiming",
                }
                | {"dropout": 0.0, "targets": "all-linear"},
                "optimizer": {"name": "sgd", "lr": lr, "weight_decay": 0.0} | dict(optimizer or {}),
                "train": {
                    "steps": steps,
                    "batch_size": 2,
                    "accumulation": 1,
                    "clip": None,
                    "schedule": "constant",
                }
                | {"warmup": 0},
                "data": {"seed": seed, "sequence_length": 48},
                "seed": seed,
                "precision": "float32",
            }
            about = {
                "cell_id": f"{number:012x}",
                "study": "known",
                "model": model,
                "data": "pydoc",
                "gamma": gamma,
            }
            about |= {
                "device": "cpu",
                "device_name": "a CPU",
                "config": config,
                "versions": {"torch": "2.13"},
            }
            about |= {
                "git": {"commit": "0123456789abcdef", "dirty": False},
                "sources": {"model": "f" * 64},
            }
            about |= {
                "started": "2026-01-01T00:00:00",
                "finished": "2026-01-01T00:01:00",
                "seconds": 60.0,
            }
            writer = CellWriter(folder / "cells" / about["cell_id"], "", about | dict(record or {}))
            for step in (0, 1):
                descent = 1e-3 * gamma**2 * rank * (1 + 0.01 * seed)
                row = {
                    "step": step,
                    "tokens": 9,
                    "loss": 2.0,
                    "loss_after": 2.0 - lazy(cell) * descent,
                    "lr": lr,
                }
                row |= {"clip_factor": clip(cell), "eval_loss": 3.0 if step == 0 else math.nan}
                writer.append("metrics", pd.DataFrame([row]))
                wide = {
                    "step": step,
                    "layer": "model",
                    "block": -1,
                    "kind": "model",
                    "batch": "train",
                }
                rows = [
                    wide | {"site": "adapter_grad", "norm": gamma * rank**0.5 * (1 + 0.01 * seed)},
                    wide | {"site": "adapter_update", "descent": descent},
                ]
                for layer in LAYERS:
                    here = wide | {
                        "layer": layer,
                        "block": 0,
                        "kind": layer.rpartition(".")[2],
                        "d_in": 64,
                        "d_out": 32,
                    }
                    rows.append(here | {"site": "B_grad", "rms": gradient * gamma})
                writer.append("probes", pd.DataFrame(rows))
            final = 2.5 + 0.1 * (math.log(lr) - math.log(1e-3)) ** 2
            writer.append(
                "metrics",
                pd.DataFrame([{"step": steps, "tokens": 99, "eval_loss": final, "lr": lr}]),
            )
            fate = status(cell)
            writer.close(
                fate, steps_done=steps, **({"diverged_step": 2} if fate == "diverged" else {})
            )
        return folder

    return write
