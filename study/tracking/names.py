"""What trackers are told: the names of metrics, tags and the configuration.

W&B and others group charts by the part of a name before a slash.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from study.vocabulary.quantities import MODEL_WIDE, TRAIN
from study.vocabulary.scaling import rule_words

_SHORT = {"adapter_grad": "grad_norm", "adapter_update": "update_norm"}


def norm_of(site: str, batch: str = TRAIN) -> str:
    """``grad_norm``, ``update_norm``, or ``<site>_norm``.

    On a batch other than the training batch, ``_<batch>`` is appended.
    """
    return _SHORT.get(site, f"{site}_norm") + ("" if batch == TRAIN else f"_{batch}")


def artifact_name(study: str, what: str) -> str:
    """``quick-figures``: a name that W&B accepts. A study whose name it would refuse keeps what W&B
    accepts of it, and gets a hash.
    """
    accepted = re.sub(r"[^a-zA-Z0-9_.-]", "_", study)[:80]
    if accepted != study:
        digits = hashlib.sha256(study.encode(errors="surrogateescape")).hexdigest()[:8]
        accepted = f"{accepted}-{digits}"
    return f"{accepted}-{what}"


def rule_of(record: Mapping[str, Any]) -> str:
    """``rslora``, or ``power p=0.75``: the scaling rule of a cell's record."""
    adapter = record["config"]["adapter"]
    return rule_words(adapter["scaling"], adapter["exponent"])


def tags(record: Mapping[str, Any]) -> list[str]:
    """The rule, rank, optimizer and model of a cell's record; W&B allows 64 characters for each."""
    rank, optimizer = record["config"]["adapter"]["rank"], record["config"]["optimizer"]["name"]
    return [tag[-64:] for tag in (rule_of(record), f"rank {rank}", optimizer, record["model"])]


def flat(record: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The configuration of a cell's record by dotted key, and what else identifies the cell.

    Lists become text, an infinite number becomes ``inf``, and keys without a value are left out, as
    not every tracker stores those.
    """
    found: dict[str, bool | int | float | str] = {
        key: record[key] for key in ("study", "cell_id", "gamma")
    }

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in plain(values).items():
            if isinstance(value, Mapping):
                add(f"{prefix}{key}.", value)
            elif value is not None:
                found[prefix + key] = (
                    value if isinstance(value, bool | int | float | str) else str(value)
                )

    add("", record["config"])
    return found


def history_row(
    metrics: Mapping[str, float], probes: pd.DataFrame | None, sites: Sequence[str]
) -> dict[str, float]:
    """One step of a cell: every metric, and the ``norm`` of each probed layer at ``sites``."""
    row = {name: value for name, value in metrics.items() if name != "step"}
    if probes is None or "norm" not in probes:
        return row
    sent = probes[probes["site"].isin(sites)]
    layers = _layer_names(sent)
    norms = sent["norm"].astype("float32")  # The precision of the store.
    for layer, site, batch, norm in zip(
        sent["layer"], sent["site"], sent["batch"], norms, strict=True
    ):
        row[f"{norm_of(site, batch)}/{layers[layer]}"] = float(norm)
    return row


def _layer_names(probes: pd.DataFrame) -> dict[str, str]:
    """By path, a short name of each layer: ``block_07/q_proj``; ``model`` for the whole model.

    Layers of the same block and kind, such as experts, keep the path below the block, so that no
    two layers share a name.
    """
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
    """A configuration that JSON can hold: an infinite rank becomes the string ``inf``."""
    return {key: _plain_value(value) for key, value in config.items()}


def _plain_value(value: object) -> object:
    if isinstance(value, Mapping):
        return plain(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
