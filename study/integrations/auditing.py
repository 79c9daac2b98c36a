"""``study audit``: the effect of a finished PEFT adapter on its base, layer by layer."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from study.adapters.truncation import singular_factors
from study.analysis.plane import motion_words
from study.errors import StudyError
from study.integrations.exporting import span
from study.integrations.serving import base_of, served, verdict
from study.models.card import block_of
from study.models.messages import quiet
from study.probes.delta_w import core, largest_singular_values
from study.theory.rounding import swallowed
from study.training.peft_format import PeftAdapter, read_adapter
from study.vocabulary.quantities import RHO
from study.vocabulary.scaling import RULES

OF_BASE = ("base_norm", "base_spectral", "relative", "lost_in_bf16")
"""The columns of :func:`audit` that need the base."""
HEADS = {
    "rank": "rank",
    "gamma": "gamma",
    "norm": "|γBA|",
    "relative": "/|W0|",
    "spectral": "σ1",
    "stable_rank": "stable",
    "effective_rank": "effective",
    "lost_in_bf16": "bf16 loses",
    RHO: "ρ",
}
"""The heads of the columns of :func:`by_kind`; stable and effective are ranks."""


def audit(
    folder: Path, base: str | None = None, initial: Path | None = None
) -> tuple[PeftAdapter, pd.DataFrame]:
    """The adapter in ``folder``, and a row per layer:

    - ``layer``, ``kind`` (its last word), ``block`` (-1 outside the blocks), ``experts`` (0 for a
      linear layer), ``d_in``, ``d_out``, ``rank``;
    - ``gamma``: as PEFT multiplies. ``moved``: whether B differs from 0;
    - ``norm``, ``spectral``: the Frobenius norm of ``gamma B A`` and its largest singular value.
      ``stable_rank``: ``(norm / spectral)^2``. ``effective_rank``: exp of the entropy of the
      singular values divided by their sum (Roy and Vetterli 2007). NaN if the layer has not moved;
    - ``base_norm``, ``base_spectral``: of W0. ``relative``: ``norm / base_norm``;
    - ``lost_in_bf16``: the share of its output that a bf16 layer loses, for inputs without a
      preferred direction (:mod:`study.theory.rounding`);
    - ``rho``: ``|A - A0| / |A0|`` in Frobenius norms, the motion of A for inputs without a
      preferred direction. NaN without ``initial``, the adapter's folder before training.

    On experts, norms are over all of them, ``spectral`` is the largest, and both ranks are medians.

    ``base``: as :func:`~study.integrations.serving.base_of` says. It is loaded in bf16, which is
    exact for most checkpoints. Without it, its columns are NaN.
    """
    adapter = read_adapter(folder)
    first = {} if initial is None else _initial_A(adapter, initial)
    weights: dict[str, Tensor] | None = None
    if base is not None:
        with quiet():
            model = base_of(base).load(torch.device("cpu"), torch.bfloat16, None)
        weights = dict(model.named_parameters(remove_duplicate=False))
    rows = []
    for layer, (A_RD, B_OR, gamma) in adapter.pairs.items():
        rank, place = A_RD.shape[-2], block_of(layer)
        row = {
            "layer": layer,
            "kind": layer.rpartition(".")[2],
            "block": place[1] if place else -1,
            "experts": len(A_RD) if A_RD.ndim == 3 else 0,
            "d_in": A_RD.shape[-1],
            "d_out": B_OR.shape[-2],
            "rank": rank,
            "gamma": gamma,
            "moved": bool(B_OR.any()),
            RHO: float((A_RD - first[layer]).norm() / first[layer].norm()) if first else math.nan,
        }
        row |= _spectrum(gamma * singular_factors(A_RD, B_OR)[2])
        of_base = dict.fromkeys(OF_BASE, math.nan)
        rows.append(row | (of_base if weights is None else _of_base(weights, row, str(base))))
    return adapter, pd.DataFrame(rows)


def _initial_A(adapter: PeftAdapter, initial: Path) -> dict[str, Tensor]:
    """By layer A before training.

    Raises :class:`~study.errors.StudyError` if a layer is missing or has another shape.
    """
    first = {layer: A_RD for layer, (A_RD, _, _) in read_adapter(initial).pairs.items()}
    for layer, (A_RD, _, _) in adapter.pairs.items():
        if layer not in first or first[layer].shape != A_RD.shape:
            raise StudyError(f"{initial} is not this adapter before training: its {layer} differs")
    return first


def _spectrum(s_m: Tensor) -> dict[str, float]:
    s_Em = np.atleast_2d(s_m.double().numpy())
    norm_E = np.sqrt((s_Em**2).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        p_Em = s_Em / s_Em.sum(axis=1, keepdims=True)
        entropy_E = -np.where(p_Em > 0, p_Em * np.log(p_Em), 0 * p_Em).sum(axis=1)
        stable_E = (norm_E / s_Em[:, 0]) ** 2
    moved = norm_E > 0
    return {
        "norm": float(np.sqrt((norm_E**2).sum())),
        "spectral": float(s_Em.max()),
        "stable_rank": float(np.median(stable_E[moved])) if moved.any() else math.nan,
        "effective_rank": float(np.median(np.exp(entropy_E[moved]))) if moved.any() else math.nan,
    }


def _of_base(weights: Mapping[str, Tensor], row: dict[str, Any], base: str) -> dict[str, float]:
    """The columns :data:`OF_BASE` of a layer's ``row``. ``weights``: those of the base, by path."""
    W = weights.get(f"{row['layer']}.weight", weights.get(row["layer"]))
    sides = {row["d_in"], row["d_out"]}
    if W is None or set(W.shape[-2:]) != sides or (W.ndim == 3) != (row["experts"] > 0):
        why = f"the adapter is for another base than {base}: its {row['layer']} differs"
        raise StudyError(f"{why}: give its base with --base")
    W = W.detach().float()
    norm = float(W.norm())
    cores = [core(one) for one in (W if W.ndim == 3 else W[None])]
    outputs = math.sqrt(row["d_out"] * max(row["experts"], 1))
    lost = float(swallowed(norm / outputs, row["norm"] / outputs))
    spectral = max(map(float, largest_singular_values(cores)))
    return dict(zip(OF_BASE, (norm, spectral, row["norm"] / norm, lost), strict=True))


def findings(adapter: PeftAdapter, rows: pd.DataFrame) -> list[str]:
    config, moved = adapter.config, rows[rows["moved"]]
    label = RULES[adapter.scaling].label
    found = [
        f"{label} on {len(rows)} layers: rank {span(rows['rank'])}, lora_alpha "
        f"{config['lora_alpha']:g}, gamma {span(rows['gamma'])}."
    ]
    if len(still := rows[~rows["moved"]]):
        names = ", ".join([*still["layer"][:3], *["..."] * (len(still) > 3)])
        found.append(f"{len(still)} of {len(rows)} layers have not moved (B = 0): {names}.")
    if moved.empty:
        return [*found, verdict(served(adapter))]
    share = (moved["effective_rank"] / moved["rank"]).median()
    found.append(
        f"The effective rank is {moved['effective_rank'].median():.3g} in the median layer, "
        f"{share:.0%} of the rank."
    )
    if moved[RHO].notna().any():
        found.append(motion_words(float(np.exp(np.log(moved[RHO]).mean()))))
    if moved["relative"].notna().any():
        largest = moved.sort_values("relative").iloc[-1]
        found.append(
            f"|gamma B A| / |W0| is {moved['relative'].median():.2g} in the median layer, and "
            f"{largest['relative']:.2g} at most, in {largest['layer']}."
        )
        found.append(
            "A bf16 layer that adds the adapter's output to a rounded output loses "
            f"{moved['lost_in_bf16'].median():.0%} of it in the median layer (an estimate, for "
            "inputs without a preferred direction)."
        )
    return [*found, verdict(served(adapter))]


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`audit` by kind of layer, as texts: medians over layers."""
    groups = rows.groupby("kind", sort=False)
    medians = groups[list(HEADS)].median().dropna(axis=1, how="all").map("{:.3g}".format)
    counts = groups.size().rename("layers").astype(str)
    return counts.to_frame().join(medians).rename(columns=HEADS).reset_index()
