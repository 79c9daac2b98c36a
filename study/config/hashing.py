"""The identity of a cell: a hash of everything that moves its numbers, and of nothing else."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from study.config.schedules import chosen, eval_steps, probe_steps, truncation_ranks
from study.config.types import CellConfig
from study.sites import BATCHES, SITES, STATS, USUAL

IDENTITY_VERSION = 1


@dataclass(frozen=True)
class Sources:
    """Hashes of what a cell reads: the base's weights, its tokenizer and the examples (sha256, hex)."""

    model: str
    tokenizer: str
    data: str


def identity(config: CellConfig, sources: Sources) -> str:
    """The cell's id: 12 hex digits over everything that moves its trajectory or its tables, and over nothing else.

    Device, packing, launcher and paths are left out: the same identity means the same result within rounding.
    """
    adapter = asdict(config.adapter)
    if config.adapter.rank == math.inf:
        adapter["rank"] = "inf"  # JSON has no infinity
    if not isinstance(config.adapter.targets, str):
        adapter["targets"] = sorted(config.adapter.targets)
    matters = {
        "identity_version": IDENTITY_VERSION,
        "sources": asdict(sources),
        "sequence_length": config.data.sequence_length,
        "heldout": config.data.heldout,
        "adapter": adapter,
        "optimizer": asdict(config.optimizer),
        "train": {k: v for k, v in asdict(config.train).items() if k != "eval_every"},
        "eval_steps": sorted(eval_steps(config)),
        "seed": config.seed,
        "data_seed": config.data.seed,
        "precision": config.precision,
        "probes": {
            "steps": probe_steps(config),
            "sites": chosen("probes.sites", config.probes.sites, SITES),
            "stats": chosen("probes.stats", config.probes.stats, STATS, USUAL),
            "batch": chosen("probes.batch", config.probes.batch, BATCHES),
            "tokens": config.probes.tokens,
        },
    }
    if cut := truncation_ranks(config):  # left out where none is asked for, so that such a cell keeps its identity
        matters["truncations"] = ["inf" if rank == math.inf else rank for rank in cut]
    canonical = json.dumps(matters, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
