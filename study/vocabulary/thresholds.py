"""The thresholds of verdicts, predictions and warnings. No other module repeats them."""

STABLE_RATIO = 1.5
"""A quantity keeps its size if it changes by less than this factor over the ranks measured. It
shrinks or grows if it changes by more."""

SIGNIFICANCE = 0.05
"""The level of every test."""

CONFIDENCE = 0.95
"""The confidence of every interval and band, two-sided and pointwise."""

SEEDS_FOR_VERDICT = 3
"""A verdict needs this many seeds. The t quantile of two seeds is 12.7, too large for a verdict."""

FEW_SEEDS = 5
"""With fewer seeds than this, an interval over seeds is too wide to rely on."""

RANKS_FOR_INTERVAL = 3
"""Two ranks determine the line of a seed exactly. One seed needs three ranks to show how straight
its line is, and a bend needs three ranks."""

ROUNDING = 1e-7
"""A slope closer to zero is rounding: statistics are stored in float32."""

LAST_PREDICTED_STEP = 3
"""Predictions are for steps 0 to here. Later, A's motion is not small compared with its init."""

LINEAR_UNTIL = 1
"""The last step at which every slope is exactly linear in p."""

LAZY_WITHIN = 0.1
"""A step is lazy if the loss changes by what its linearisation says, within this share."""

SIGN_LIKE_FROM, LINEAR_UP_TO = 100.0, 0.01
"""Adam's updates are sign-like where rms(gradient) / eps is at least the first number. They are
linear in the gradient where it is at most the second, and neither in between."""

STUCK_STEPS = 2
"""A run is stuck if this many gradients in a row, up to the last one, are negligible."""

STUCK_GRADIENT = 1e-8
"""A gradient is negligible if norm / first norm is at most this times loss / first loss. This is
below the rounding of float32, so a run at a minimum keeps larger gradients. A run whose loss falls
to 0 has gradients in proportion to its loss."""

STUCK_LOSS = 1e-6
"""Held-out losses are the same to rounding if they differ by at most this share."""

MOST_RANK = 1 << 24
MOST_STEPS = 10**8
"""Sanity limits of what users give."""
