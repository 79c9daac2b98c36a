"""The properties of a layer that finite-rank curves depend on."""

import math
from dataclasses import dataclass

from study.vocabulary.inits import UNIFORM

MIDDLE_BACK = 1.25
"""``r_back`` if it is unknown; it is between 1 and pi/2. At D = 576 its slope is within 0.007 of
either end's slope over ranks 4 to 256, and within 0.013 over ranks 4 to 2048."""


@dataclass(frozen=True)
class Layer:
    """The properties of a layer that a finite-rank curve depends on. NaN means unknown; curves that
    depend on it are NaN.

    - ``d_in``, ``d_out``: D and O;
    - ``r_align = |G|^2 E|x|^2 / E|G x|^2``: from 1, if every x lies along the one direction that G
      reads, to about D for x unrelated to G; about 5 on real text;
    - ``r_sign = (pi/2) / mean cos^2(G_o, x)``: the mean is over outputs o and over tokens, weighted
      by ``|x|^2``;
    - ``r_back = g^T arcsin(K) g / g^T K g``, K the cosines between the rows of G;
    - ``r_diag = sum_i |G_i|^2 E x_i^2 / E|G x|^2`` over the columns of G. ``None`` means r_align /
      D, the value for an x spread evenly over its entries;
    - ``kurtosis``: the excess kurtosis of the entries of the random factor;
    - ``r_eff = |G|^4 / |G G^T|^2``: the effective number of directions of G. NaN means
      ``sqrt(r_align)``, or unknown if r_align is unknown too;
    - ``r_joint = tr(P M)^2 / |P M|^2`` of the symmetric part of ``P M``, ``P = G^T G``, ``M`` the
      second moment of x: the effective number of directions that G and x have in common. NaN means
      1. Only log biases (:mod:`study.theory.log_gaps`) depend on these two;
    - ``g_rank``: the rank of G, at most the number of tokens that it sums over;
    - ``r_nuc = |G|_*^2 / |G|^2``: the effective number of directions of G by its nuclear norm;
    - ``outside``: the share of ``|x|^2`` outside the row space of G. Only the curves of spectral
      rules (:mod:`study.theory.spectral`) depend on these three;
    - ``r_rows = 1 / mean_o (sum_i G_oi^4 / |G_o|^4)``: the effective number of inputs that a row of
      G reads. NaN means infinitely many.

    Under Init[B] all of them are those of the transposed problem (x <-> g, G <-> G^T).
    """

    d_in: float = math.nan
    d_out: float = math.nan
    r_align: float = math.nan
    r_sign: float = math.nan
    r_back: float = MIDDLE_BACK
    r_diag: float | None = None
    kurtosis: float = UNIFORM
    r_eff: float = math.nan
    r_joint: float = math.nan
    g_rank: float = math.nan
    r_nuc: float = math.nan
    outside: float = math.nan
    r_rows: float = math.nan

    @property
    def sharpness(self) -> float:
        """The squared length of the mean of ``sign(G_o a) a``, over that for a Gaussian a."""
        if math.isnan(self.r_rows):
            return 1.0
        q, kappa = 1 / self.r_rows, self.kurtosis
        return 1 - kappa * q / 12 + kappa**2 * q**1.5 / 24

    @property
    def share(self) -> float:
        """The share of |G|^2 along one direction, which models the spectrum of G."""
        return self.r_align**-0.25 if math.isnan(self.r_eff) else self.r_eff**-0.5

    @property
    def joint(self) -> float:
        """As ``share``, for the directions that G and x have in common."""
        return 1.0 if math.isnan(self.r_joint) else min(1.0, self.r_joint**-0.5)


UNKNOWN = Layer()
