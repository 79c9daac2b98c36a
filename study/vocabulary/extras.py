"""Optional packages: the extras of the distribution, and the experiment trackers."""

from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "rank-study"
"""The name that pip knows. The package to import and the command are called ``study``."""


def install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml: in a clone's folder, or of a wheel."""
    is_clone = (Path(__file__).parents[2] / "pyproject.toml").exists()
    return f"pip install '{'.' if is_clone else DISTRIBUTION}[{extra}]'"


NONE, WANDB = "none", "wandb"


@dataclass(frozen=True)
class TrackerRow:
    """``at_once``: whether one process can write several runs at a time."""

    label: str
    at_once: bool = False


TRACKERS: dict[str, TrackerRow] = {
    WANDB: TrackerRow("W&B", at_once=True),
    "tensorboard": TrackerRow("TensorBoard", at_once=True),
    "trackio": TrackerRow("Trackio"),
    "mlflow": TrackerRow("MLflow"),
    "comet_ml": TrackerRow("Comet"),
    "aim": TrackerRow("Aim", at_once=True),
    "clearml": TrackerRow("ClearML"),
    "dvclive": TrackerRow("DVCLive"),
    "swanlab": TrackerRow("SwanLab"),
}
"""The choices of ``tracker=``: W&B, and those of ``accelerate.tracking``, by the name of their
package, which accelerate uses too."""
