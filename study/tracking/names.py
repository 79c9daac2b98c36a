"""What a row of the store is called in W&B, where charts are grouped by what stands before a slash."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from study.vocabulary.quantities import MODEL_WIDE, TRAIN

_SHORT = {"adapter_grad": "grad_norm", "adapter_update": "update_norm"}


def norm_of(site: str, batch: str = TRAIN) -> str:
    """``grad_norm`` for the adapters' gradient, ``update_norm``, else ``<site>_norm``; off the training batch it is
    ``<site>_norm_<batch>``."""
    return _SHORT.get(site, f"{site}_norm") + ("" if batch == TRAIN else f"_{batch}")


def history_row(
    metrics: Mapping[str, float], probes: pd.DataFrame | None, sites: Sequence[str]
) -> dict[str, float]:
    """One step of a cell under W&B's names: every metric as it is, and ``norm`` of the probed layers at ``sites``."""
    row = {name: value for name, value in metrics.items() if name != "step"}
    if probes is None or "norm" not in probes:
        return row
    sent = probes[probes["site"].isin(sites)]
    layers = _layer_names(sent)
    norms = sent["norm"].astype("float32")  # as the store has them
    for layer, site, batch, norm in zip(
        sent["layer"], sent["site"], sent["batch"], norms, strict=True
    ):
        row[f"{norm_of(site, batch)}/{layers[layer]}"] = float(norm)
    return row


def _layer_names(probes: pd.DataFrame) -> dict[str, str]:
    """``block_07/q_proj`` for a layer by its path, ``model`` for the whole; the path below the block where two layers
    of a block are of one kind (experts), so that no two layers share a name."""
    layers = probes[["layer", "block", "kind"]].drop_duplicates()
    shared = layers.duplicated(["block", "kind"], keep=False)
    names = {}
    for (layer, block, kind), ambiguous in zip(layers.itertuples(index=False), shared, strict=True):
        if layer == MODEL_WIDE:
            names[layer] = MODEL_WIDE
            continue
        below = layer.partition(f".{block}.")[2] or layer
        names[layer] = (f"block_{block:02d}/" if block >= 0 else "") + (
            below if ambiguous else kind
        )
    return names


def plain(config: Mapping[str, object]) -> dict[str, object]:
    """A configuration as JSON has it: infinity, the rank of the limit, becomes ``inf`` in words."""
    return {
        key: plain(value)
        if isinstance(value, Mapping)
        else str(value)
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in config.items()
    }
