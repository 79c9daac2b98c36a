"""Measured quantities. Letters: x the input of an adapted linear, y its output, g = dL/dy, ``W0``
its frozen weight.
"""

from dataclasses import dataclass
from typing import Literal

Group = Literal["forward", "backward", "weights", "gradients", "updates", "union"]


@dataclass(frozen=True)
class Site:
    """Where a probe measures. ``symbol``: in mathtext. ``parts``: for a union, the sites it joins;
    it is measured per layer and over the whole model."""

    label: str
    symbol: str
    group: Group
    parts: tuple[str, ...] = ()


SITES: dict[str, Site] = {
    "adapter_in": Site("input of the adapter", r"$x$", "forward"),
    "adapter_out": Site("adapter output", r"$\gamma BAx$", "forward"),
    "layer_out": Site("output of the adapted layer", r"$W_0x + \gamma BAx$", "forward"),
    "layer_out_grad": Site("gradient at the layer's output", r"$g$", "backward"),
    "adapter_in_grad": Site(
        "gradient that the adapter passes to its input",
        r"$\gamma A^{\mathsf{T}} B^{\mathsf{T}} g$",
        "backward",
    ),
    "A": Site("A", r"$A$", "weights"),
    "B": Site("B", r"$B$", "weights"),
    "delta_w": Site("change of the weight", r"$\gamma BA$", "weights"),
    "A_grad": Site("gradient of A", r"$\nabla_{\!A}\,L$", "gradients"),
    "B_grad": Site("gradient of B", r"$\nabla_{\!B}\,L$", "gradients"),
    "A_update": Site("update of A", r"$\Delta A$", "updates"),
    "B_update": Site("update of B", r"$\Delta B$", "updates"),
    "adapter_grad": Site(
        "gradient of A and B", r"$\nabla_{\!A,B}\,L$", "union", ("A_grad", "B_grad")
    ),
    "adapter_update": Site(
        "update of A and B", r"$\Delta_{A,B}$", "union", ("A_update", "B_update")
    ),
}


def _of_group(group: Group) -> tuple[str, ...]:
    return tuple(name for name, site in SITES.items() if site.group == group)


FORWARD, BACKWARD = _of_group("forward"), _of_group("backward")
WEIGHTS, GRADIENTS, UPDATES = _of_group("weights"), _of_group("gradients"), _of_group("updates")
UNIONS = {name: site.parts for name, site in SITES.items() if site.group == "union"}

PRODUCTS = ("adapter_out", "adapter_in_grad", "delta_w")
"""Sites computed from ``gamma B A``. Their finite-rank curves bend at a crossover."""

NOISE_SITES = ("adapter_out", "adapter_in_grad")
"""Sites that can be measured on Gaussian x and g."""

Kind = Literal["moment", "spectrum", "alignment", "motion"]


@dataclass(frozen=True)
class Stat:
    """- ``kind``: ``moment`` is computed from sums over the elements, ``spectrum`` from singular
      values, ``alignment`` from weight gradients and inputs or A, ``motion`` from the factors and
      inputs;
    - ``usual``: part of ``probes.stats=all``. Most others cost a product with the inputs, or a
      weight gradient, per layer;
    - ``fitted``: whether a scaling exponent of it is estimated.
    """

    label: str
    formula: str
    kind: Kind = "moment"
    usual: bool = True
    fitted: bool = True


_ALIGNMENTS = {
    "r_align": ("alignment of inputs", "|G|^2 E|x|^2 / E|G x|^2"),
    "r_sign": ("alignment of inputs under a sign-like rule", "(pi/2) / mean cos^2(G_o, x)"),
    "r_diag": ("diagonal alignment of inputs", "sum_i |G_i|^2 E x_i^2 / E|G x|^2"),
    "r_eff": ("effective number of directions of the weight gradient", "|G|^4 / |G G^T|^2"),
    "r_nuc": (
        "effective number of directions of the weight gradient, by its nuclear norm",
        "|G|_*^2 / |G|^2",
    ),
    "r_rows": (
        "effective number of inputs that an output's weight gradient reads",
        "1 / mean over outputs of sum_i G_oi^4 / |G_o|^4",
    ),
    "r_joint": (
        "effective number of directions that inputs and weight gradient have in common",
        "tr(P M)^2 / |sym(P M)|^2, P = G^T G, M = E x x^T",
    ),
    "r_back": ("alignment of output gradients", "g^T arcsin(K) g / g^T K g"),
}
"""Label and formula of each property of a layer in finite-rank curves
(:class:`study.theory.Layer`)."""

RHO = "rho"
STATS: dict[str, Stat] = {
    "mean_abs": Stat("mean absolute value", "E|x|"),
    "rms": Stat("root mean square", "sqrt(E x^2)"),
    "m4": Stat("fourth moment", "(E x^4)^(1/4)"),
    "max_abs": Stat("largest absolute value", "max |x|"),
    "norm": Stat("Frobenius norm", "sqrt(sum x^2)"),
    "descent": Stat("descent", "-<gradient, update>"),
    "nonfinite": Stat("not finite", "1 if any element is not finite, else 0", fitted=False),
    "swallowed": Stat("share lost in rounding", "1 - <d, D> / <d, d>", fitted=False),
    "spectral": Stat("largest singular value", "sigma_1", "spectrum"),
    "stable_rank": Stat("stable rank", "(norm / spectral)^2", "spectrum"),
    "effective_rank": Stat(
        "effective rank", "(sum s^2)^2 / sum s^4, s the singular values", "spectrum", usual=False
    ),
    **{name: Stat(*row, "alignment", False, False) for name, row in _ALIGNMENTS.items()},
    "row_share": Stat(
        "share of the weight gradient in the row space of A",
        "|G P|^2 / |G|^2, P the projection on the rows of A",
        "alignment",
        usual=False,
    ),
    RHO: Stat("motion of A over its init", "|dA x| / |A0 x|", "motion", usual=False),
    "r_parts": Stat(
        "r_sign of the trained output",
        "(r - 1) sum_k |B_k A_k x|^2 / (|B A x|^2 - sum_k |B_k A_k x|^2)",
        "motion",
        False,
        False,
    ),
    "mean_norm": Stat(
        "mean norm over A and B of all layers", "mean over tensors of sqrt(sum x^2)", usual=False
    ),
}
BEST_RHO = (0.4, 1.0)
"""Where the lowest losses over alpha and rate have rho at the end, at ranks 16 to 256 of two models
of 2.8 and 135 million parameters after 64 to 1,024 steps of AdamW (docs/alpha.md)."""
MEAN_NORM = "mean_norm"
"""Of a union of A and B: the other reading of the paper's "average gradient norm"."""

USUAL = tuple(name for name, stat in STATS.items() if stat.usual)
"""The statistics of ``probes.stats=all``."""
MOMENTS = tuple(name for name, stat in STATS.items() if stat.kind == "moment")
SPECTRA = tuple(name for name, stat in STATS.items() if stat.kind == "spectrum")
ALIGNMENTS = tuple(_ALIGNMENTS)
UNDIVIDED = (*SPECTRA, *ALIGNMENTS, "row_share")
"""Statistics that each process computes of whole tensors, so processes do not add them."""

TRAIN, HELDOUT, NOISE = BATCHES = ("train", "heldout", "noise")
"""The step's own batch; one fixed batch that is never trained on; isotropic Gaussian x and g."""
BATCH_NAMES = {TRAIN: "training", HELDOUT: "held-out", NOISE: "noise"}

MODEL_WIDE = "model"
"""The value of the columns ``layer`` and ``kind`` in a row over the whole model."""
MEAN_LOG, MEDIAN = POOLINGS = ("mean_log", "median")
"""The value of ``layer`` in rows that pool layers: mean and median of the log statistic."""
ALL_KINDS = "all"
"""The value of ``kind`` in rows that pool the layers of every kind."""


@dataclass(frozen=True)
class Quantity:
    """A statistic at a site that tables, figures and reports put first.

    - ``label``: for a table. ``name``: for a legend. ``noun``: in a sentence. ``symbol``: mathtext;
    - ``layer``, ``kind``: which rows of ``exponents`` hold it;
    - ``primary_at``: the steps at which its verdict is primary, fixed before any run. ``last`` is
      the last step measured;
    - ``p_star``: its place in a table of p*; None if no p* is estimated.
    """

    site: str
    stat: str
    label: str
    name: str
    noun: str
    symbol: str
    layer: str = MEAN_LOG
    kind: str = ALL_KINDS
    primary_at: tuple[int | Literal["last"], ...] = ()
    p_star: int | None = None


GRADIENT_NORM = Quantity(
    *("adapter_grad", "norm", "gradient norm over all adapters", "gradient norm"),
    "gradient norm",
    r"$\|\nabla_{\!A,B}\,L\|$",
    *(MODEL_WIDE, MODEL_WIDE),
    primary_at=(0,),
    p_star=1,
)
"""The paper's Figure 3. Flat at p = 1/2 under every optimizer."""
MEAN_GRADIENT_NORM = Quantity(
    *("adapter_grad", MEAN_NORM, "mean norm of the gradients of A and B", "mean gradient norm"),
    "mean norm of the gradients of A and B",
    r"mean of $\|\nabla_{\!A}\,L\|$, $\|\nabla_{\!B}\,L\|$",
    *(MODEL_WIDE, MODEL_WIDE),
)
"""The other reading of the paper's Figure 3, "average parameter gradient norm"."""
DESCENT = Quantity(
    *("adapter_update", "descent", "descent of an update", "descent"),
    "descent",
    r"$-\langle\nabla_{\!A,B}\,L,\ \Delta\rangle$",
    *(MODEL_WIDE, MODEL_WIDE),
    primary_at=(0, 1),
    p_star=0,
)
"""The first-order decrease of the loss by an update. It has no crossover in the rank under any
optimizer. The update of step 0 moves B only; from step 1 A moves too."""
FORWARD_OUT = Quantity(
    *("adapter_out", "rms", "adapter output, rms", "forward"),
    "adapter output",
    r"rms of $\gamma BAx$",
    primary_at=("last",),
    p_star=2,
)
"""Theorem 3.2, condition 1: outputs of the adapter."""
BACKWARD_IN = Quantity(
    *("adapter_in_grad", "rms", "gradient into the inputs, rms", "backward"),
    "gradient into the inputs",
    r"rms of $\gamma A^{\mathsf{T}} B^{\mathsf{T}} g$",
    primary_at=("last",),
    p_star=3,
)
"""Theorem 3.2, condition 2: gradients that the adapter passes to its inputs."""
WEIGHT_CHANGE = Quantity(
    *("delta_w", "norm", "norm of γBA", "weight change", "norm of γBA", r"$\|\gamma BA\|$"),
    p_star=4,
)

QUANTITIES = (GRADIENT_NORM, DESCENT, FORWARD_OUT, BACKWARD_IN, WEIGHT_CHANGE)
PRIMARY = [quantity for quantity in QUANTITIES if quantity.primary_at]
"""Summaries begin with these. Their steps ``primary_at`` were fixed before any run, on the training
batch. Every other row is corrected for multiple tests."""

FIRST_READ = (
    *(("adapter_grad", "norm"), ("adapter_out", "rms"), ("adapter_in_grad", "rms")),
    *(("delta_w", "norm"), ("B_grad", "norm"), ("A_grad", "norm"), ("layer_out_grad", "rms")),
    ("adapter_update", "norm"),
)
"""The (site, stat) pairs that a dashboard offers first; it opens with the first of them."""


@dataclass(frozen=True)
class Metric:
    label: str
    unit: str = ""


METRICS: dict[str, Metric] = {
    "loss": Metric("training loss", "nats per token"),
    "loss_after": Metric("loss on the step's batch after its update", "nats per token"),
    "eval_loss": Metric("held-out loss", "nats per token"),
    "exact_match": Metric("share of held-out questions answered correctly"),
    "lr": Metric("learning rate"),
    "grad_norm": Metric("gradient norm, all adapters"),
    "clip_factor": Metric("factor by which clipping multiplied the gradient"),
    "seconds": Metric("time so far", "s"),
}

LOSS = "loss"
DISTANCES = {"input_weighted": "input-weighted", "frobenius": "Frobenius", LOSS: "loss"}
"""How far a run of finite rank is from infinite rank: the measures of ``study distances``, which
:mod:`study.analysis.distances` defines, with their labels."""
