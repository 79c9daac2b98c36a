"""The properties of a layer by their definitions (:class:`study.theory.Layer`), in numpy."""

import math

import numpy as np

from study.theory import Layer
from study.vocabulary.inits import UNIFORM

RESOLVED = 1e-9
"""Singular values of G above this part of the largest count in its rank."""


def measure_layer(G, x, g, init="A", kurtosis=UNIFORM):
    """The properties of a layer from arrays: ``G`` [O, D] that the trained factor holds, inputs
    ``x`` [N, D], output gradients ``g`` [N, O]."""
    G, x, g = (np.asarray(array, dtype=np.float64) for array in (G, x, g))
    d_out, d_in = G.shape
    if init == "B":
        G, x, g = G.T, g, x
    out = x @ G.T
    energy, out_energy = np.square(x).sum(), np.square(out).sum()
    rows = np.linalg.norm(G, axis=1)
    live = rows > 0  # sign(0) = 0: an output without gradient contributes nothing
    directions = G[live] / rows[live, None]
    cos2 = np.square(x @ directions.T).sum() / (energy * live.sum())
    K = np.clip(directions @ directions.T, -1.0, 1.0)
    g_live = g[:, live]
    both = G.T @ out.T @ x
    _, singular, V = np.linalg.svd(G, full_matrices=False)
    g_rank = int((singular > RESOLVED * singular[0]).sum())
    return Layer(
        d_in=d_in,
        d_out=d_out,
        r_align=float(np.square(G).sum() * energy / out_energy),
        r_sign=float(math.pi / 2 / cos2),
        r_back=float(np.sum(g_live @ np.arcsin(K) * g_live) / np.sum(g_live @ K * g_live)),
        r_diag=float((np.square(G).sum(0) * np.square(x).sum(0)).sum() / out_energy),
        kurtosis=kurtosis,
        r_eff=float(np.square(G).sum() ** 2 / np.square(G @ G.T).sum()),
        r_joint=float(4 * np.trace(both) ** 2 / np.square(both + both.T).sum()),
        g_rank=g_rank,
        r_nuc=float(singular.sum() ** 2 / np.square(singular).sum()),
        outside=float(max(0.0, 1 - np.square(x @ V[:g_rank].T).sum() / energy)),
        r_rows=float(1 / np.mean((directions**4).sum(1))),
    )
