"""The studies of FINDINGS.md, in its order: a row per study."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Committed:
    """A study of ``results/reference``.

    - ``title``: of its section. ``asks``: its question;
    - ``figure``: the figure of its section;
    - ``others``: further figures of its report;
    - ``in_sentences``: whether the report's sentences are in its section. They compare ranks over
      training, one sentence per curve.
    """

    name: str
    title: str
    asks: str
    figure: str
    others: tuple[str, ...] = ()
    in_sentences: bool = False

    @property
    def figures(self) -> tuple[str, ...]:
        """The figures that are drawn, if their data exist."""
        return (self.figure, *self.others)


STUDIES: dict[str, Committed] = {
    study.name: study
    for study in (
        Committed(
            "stable_exponent",
            "The exponent p\\* of each optimizer",
            "At which p does a quantity not depend on the rank, under SGD, SignSGD and AdamW?",
            "conditions",
            ("descent_vs_rank", "exponent_against_p"),
        ),
        Committed(
            "optimizer_history",
            "Optimizers with history, and Muon",
            "Do Lion, RMSprop and Adafactor keep the p\\* of SignSGD once they have a history? "
            "What is the p\\* of Muon?",
            "descent_vs_rank",
            ("conditions",),
        ),
        Committed(
            "theorem_over_training",
            "The theorem's condition over training",
            "Do outputs and input gradients on fixed held-out inputs stay independent of the rank "
            "while SmolLM2 trains? Also the paper's Figures 2, 3 and 4.",
            "exponents_over_training",
            ("conditions", "grad_norm_curves", "loss_curves"),
            in_sentences=True,
        ),
        Committed(
            "theorem_over_training_tiny",
            "The same for 400 steps on a tiny model",
            "What becomes of the exponents when training goes on for longer?",
            "exponents_over_training",
            ("grad_norm_vs_rank",),
            in_sentences=True,
        ),
        Committed(
            "theorem_over_training_frozen",
            "The control: A frozen",
            "Does a frozen A keep the adapter lazy for longer?",
            "exponents_over_training",
            in_sentences=True,
        ),
        Committed(
            "learning_rate_rho_tiny",
            "The best learning rate against rho, on a tiny model",
            "How does the exponent of the best learning rate depend on p and on "
            "rho = |dA x| / |A0 x|?",
            "rate_exponent_vs_rho",
            ("learning_rate_basins",),
        ),
        Committed(
            "learning_rate_rho",
            "The best learning rate against rho, on SmolLM2",
            "Does the curve of the tiny model hold on SmolLM2?",
            "rate_exponent_vs_rho",
            ("learning_rate_basins",),
        ),
        Committed(
            "alpha_against_lr_tiny",
            "Alpha against the learning rate",
            "Do cells of equal gamma times learning rate train alike, and how does the best alpha "
            "grow with the rank?",
            "loss_against_alpha",
        ),
        Committed(
            "alpha_against_lr",
            "Alpha against the learning rate, on SmolLM2",
            "The same on SmolLM2.",
            "loss_against_alpha",
        ),
        Committed(
            "width_by_rank",
            "Width by rank",
            "Do the local slopes at all widths lie on one curve in the rank over the width?",
            "local_slopes_by_width",
        ),
        Committed(
            "infinite_rank",
            "The limit of infinite rank under SGD",
            "Does training converge as the rank grows, and how fast?",
            "distance_to_infinite_rank",
        ),
        Committed(
            "infinite_rank_adam",
            "The limit of infinite rank under Adam",
            "Does Adam have a limit at alpha/r, and what does its eps do?",
            "distance_to_infinite_rank",
        ),
        Committed(
            "stable_rank",
            "The stable rank of the change of the weights",
            "How many directions does the adapter use as its rank grows, and what does truncation "
            "cost?",
            "truncated_losses",
        ),
        Committed(
            "quantised",
            "Quantised bases",
            "Are the exponents different over a base of 8 or 4 bits?",
            "exponents_by_bits",
        ),
        Committed(
            "paper_fig5",
            "The paper's Figure 5: other data, Adafactor",
            "Does the gradient norm stay where the paper shows it?",
            "grad_norm_vs_rank",
            in_sentences=True,
        ),
        Committed(
            "paper_learning_rate",
            "The paper's learning rates",
            "Does rsLoRA of a high rank reach a lower loss than LoRA of a low rank at its best "
            "learning rate? What does it cost to truncate the trained adapter?",
            "learning_rate_basins",
            ("truncated_losses",),
        ),
        Committed(
            "paper_attention",
            "The paper's appendix: attention only",
            "Does it matter that only attention is adapted?",
            "grad_norm_vs_rank",
            in_sentences=True,
        ),
        Committed(
            "paper_b3",
            "The paper's appendix B.3",
            "A is drawn smaller by the square root of the rank. Does training collapse at α/r, as "
            "theory says?",
            "grad_norm_vs_rank",
            in_sentences=True,
        ),
        Committed(
            "quick",
            "The quick study",
            "What does the study that `make study` trains show?",
            "grad_norm_vs_rank",
            (
                *("loss_curves", "grad_norm_curves", "activation_moments_vs_rank"),
                *("descent_vs_rank", "exponent_against_p", "exponents_over_training"),
                *("exponent_heatmap", "conditions", "eps_over_ranks", "loss_against_rank"),
            ),
            in_sentences=True,
        ),
    )
}
