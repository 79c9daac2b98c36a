"""The experiment trackers that ``tracker=`` accepts: W&B, and those of ``accelerate.tracking``."""

from dataclasses import dataclass

NONE, WANDB = "none", "wandb"


@dataclass(frozen=True)
class Tracker:
    """``module``: the package to import. ``install``: the command that installs it.

    ``at_once``: whether one process can write several runs at a time.
    """

    label: str
    module: str
    install: str
    at_once: bool = False


TRACKERS: dict[str, Tracker] = {
    WANDB: Tracker("W&B", "wandb", "pip install wandb", at_once=True),
    "tensorboard": Tracker("TensorBoard", "tensorboard", "pip install tensorboard", at_once=True),
    "trackio": Tracker("Trackio", "trackio", "pip install trackio"),
    "mlflow": Tracker("MLflow", "mlflow", "pip install mlflow"),
    "comet_ml": Tracker("Comet", "comet_ml", "pip install comet_ml"),
    "aim": Tracker("Aim", "aim", "pip install aim", at_once=True),
    "clearml": Tracker("ClearML", "clearml", "pip install clearml"),
    "dvclive": Tracker("DVCLive", "dvclive", "pip install dvclive"),
    "swanlab": Tracker("SwanLab", "swanlab", "pip install swanlab"),
}
"""By the name that users and accelerate give them."""
