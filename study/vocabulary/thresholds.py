"""The numbers that verdicts, predictions and warnings compare with. Each stands here only."""

STABLE_RATIO = 1.5
"""A quantity is stable if it changes by less than this factor over the ranks measured."""

SIGNIFICANCE = 0.05
"""The level of every test."""

CONFIDENCE = 0.95
"""The confidence of every interval and band, two-sided and pointwise."""

FEW_SEEDS = 5
"""With fewer seeds than this, an interval over seeds is too wide to rely on."""

RANKS_FOR_INTERVAL = 3
"""Two ranks determine a line exactly, so they say nothing about its error."""

LAST_PREDICTED_STEP = 3
"""Predictions are for steps 0 to here. Later, A's own motion is no longer small beside its init."""

LINEAR_UNTIL = 1
"""The last step at which every slope is exactly linear in p."""

LAZY_WITHIN = 0.1
"""A step is lazy if the loss changes by what its linearisation says, within this share."""

SIGN_LIKE_FROM, LINEAR_UP_TO = 100.0, 0.01
"""Adam's updates are sign-like where rms(gradient) / eps is at least the first number. They are
linear in the gradient where it is at most the second, and neither in between."""
