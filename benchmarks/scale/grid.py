"""The sweep: thousands of cells of the tiny model that differ in rank, rule, rate and seed."""

from pathlib import Path

NAME = "scale"
SHARED = (
    *("model=tiny", "data.heldout=4", "data.sequence_length=32", "device=cpu"),
    *("train.steps=8", "train.batch_size=2"),
)
RANKS = tuple(2**n for n in range(10))
RULES = ("lora", "rslora")
SEEDS = range(10)
AT_ONE_RATE = len(RANKS) * len(RULES) * len(SEEDS)


def axes(cells: int) -> dict[str, list[str]]:
    """The values of each swept key. Their product has ``cells`` cells, a multiple of 200."""
    rates = -(-cells // AT_ONE_RATE)
    return {
        "optimizer.lr": [f"{1e-5 * 1000 ** (n / max(1, rates - 1)):.4g}" for n in range(rates)],
        "adapter.scaling": list(RULES),
        "adapter.rank": [str(rank) for rank in RANKS],
        "seed": [str(seed) for seed in SEEDS],
    }


def arguments(results: Path, cells: int) -> list[str]:
    """The arguments of ``study train`` that train the sweep into ``results``."""
    swept = [f"{key}={','.join(values)}" for key, values in axes(cells).items()]
    return ["-m", *SHARED, *swept, f"name={NAME}", f"results_dir={results}"]
