"""The identity of a cell: a hash of everything that changes its numbers, and of nothing else."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from study.config.schedules import eval_steps, probe_steps, truncation_ranks
from study.config.types import CellConfig, optimizer_config
from study.config.values import chosen
from study.vocabulary.quantities import BATCHES, SITES, STATS, TRAIN

IDENTITY_VERSION = 2
UNKNOWN_STEPS = 1_000_000
"""The length of a loop in its identity, if it is not known before the end."""
UNSEEN = (
    *("eval_every", "answer_tokens", "example_losses", "save_adapter"),
    *("epochs", "shard", "checkpointing"),
)
"""Keys of ``train`` that enter an identity through their effect, or not at all."""
ALL_STATS = (
    "mean_abs",
    "rms",
    "m4",
    "max_abs",
    "norm",
    "descent",
    "nonfinite",
    "swallowed",
    "spectral",
    "stable_rank",
)
"""What ``all`` adds to the statistics of an identity, whichever ones are registered. A statistic
that joins ``USUAL`` later moves no identity, so finished cells count as done without it."""
SAMPLED = ("adapter_out", "adapter_in_grad")
"""Sites that are measured on some tokens of each micro-batch."""


@dataclass(frozen=True)
class Sources:
    """sha256 of a cell's inputs: base weights, tokenizer, examples, an adapter to continue."""

    model: str
    tokenizer: str
    data: str
    adapter: str | None = None


def identity(config: CellConfig, sources: Sources) -> str:
    """The cell's id: 12 hex digits over everything that changes its trajectory or its tables.

    Device, packing, checkpoints, launcher, tracker, paths and ``save_adapter`` are left out: cells
    of one identity have the same result within rounding. The contraction is left out in float32.
    ``config`` holds whole numbers of steps (:func:`study.config.schedules.resolved`).
    """
    adapter = asdict(config.adapter)
    del adapter["contraction"], adapter["path"]
    if config.adapter.crossover is None:
        del adapter["crossover"]
    if config.adapter.rank == math.inf:
        adapter["rank"] = "inf"  # JSON has no infinity
    if not isinstance(config.adapter.targets, str):
        adapter["targets"] = sorted(config.adapter.targets)
    steps, batches = probe_steps(config), chosen("probes.batch", config.probes.batch, BATCHES)
    sites = chosen("probes.sites", config.probes.sites, SITES)
    stats = chosen("probes.stats", config.probes.stats, STATS, ALL_STATS)
    if config.precision == "float32":  # it is not measured in float32
        stats = tuple(stat for stat in stats if stat != "swallowed")
    probes: dict[str, Any] = {"steps": steps, "sites": sites, "stats": stats, "batch": batches}
    probes["tokens"] = config.probes.tokens
    matters = {
        "identity_version": IDENTITY_VERSION,
        "sources": {key: value for key, value in asdict(sources).items() if value is not None},
        "sequence_length": config.data.sequence_length,
        "heldout": config.data.heldout,
        "adapter": adapter,
        "optimizer": asdict(config.optimizer),
        "train": {k: v for k, v in asdict(config.train).items() if k not in UNSEEN},
        "eval_steps": sorted(eval_steps(config)),
        "seed": config.seed,
        "data_seed": config.data.seed,
        "precision": config.precision,
        "probes": probes,
    }
    # Keys added later enter only if they are used, so that earlier cells keep their identity.
    if config.data.excess_length_strategy != "truncate":
        matters["excess_length_strategy"] = config.data.excess_length_strategy
    if config.data.sample_packing:
        matters["sample_packing"] = True
    if config.train.answer_tokens:
        matters["answer_tokens"] = config.train.answer_tokens
    if config.train.example_losses:
        matters["example_losses"] = True
    # The first cells sampled the first micro-batch of a step only, and had no dropout.
    is_new = config.train.accumulation > 1 or config.adapter.dropout > 0
    if is_new and steps and TRAIN in batches and {*SAMPLED} & {*sites}:
        matters["sampled_tokens"] = "of each micro-batch, with dropout"
    if config.bf16_form:
        matters["contraction"] = config.bf16_form
    if cut := truncation_ranks(config):
        matters["truncations"] = ["inf" if rank == math.inf else rank for rank in cut]
    canonical = json.dumps(matters, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def recorded_identities(
    config: Mapping[str, Any], sources: Mapping[str, Any], of_loop: bool = False
) -> list[str]:
    """The :func:`identity` of a recorded configuration, groups of plain values. Missing keys have
    their defaults. ``of_loop``: also the ids that it has with :data:`UNKNOWN_STEPS`. Any exception
    may be raised if a value has another type."""

    def made(kind: type[Any], values: Mapping[str, Any]) -> Any:
        names = {field.name for field in fields(kind)}
        return kind(**{key: value for key, value in values.items() if key in names})

    kinds: dict[str, Any] = {f.name: f.type for f in fields(CellConfig) if is_dataclass(f.type)}
    kinds["optimizer"] = optimizer_config(config["optimizer"]["name"])
    groups = {group: made(kind, config.get(group, {})) for group, kind in kinds.items()}
    cell = CellConfig(seed=config["seed"], precision=config["precision"], **groups)
    cells = [cell]
    if of_loop:
        cells.append(replace(cell, train=replace(cell.train, steps=UNKNOWN_STEPS)))
    return [identity(cell, made(Sources, sources)) for cell in cells]
