"""Norm probes in Axolotl: ``plugins: [study.integrations.axolotl.NormProbePlugin]`` in its YAML.

``norm_probe: {results: results/mine, steps: [0, 1, 10]}`` changes defaults. Neither Hydra nor
OmegaConf is imported: Axolotl pins a version of antlr that they cannot use.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, model_validator

from study.config import chosen
from study.integrations.recording import UNSEEDED, is_seeded
from study.integrations.runs import KERNELS
from study.integrations.transformers import NormProbeCallback
from study.vocabulary.quantities import BACKWARD, FORWARD, SITES

if TYPE_CHECKING:
    BasePlugin = object
else:
    try:
        from axolotl.integrations.base import BasePlugin
    except ImportError:  # so that the module can be tested without Axolotl, which pins torch
        BasePlugin = object

Option = Literal["results", "steps", "every", "sites", "stats", "tokens", "data"]


class NormProbeArgs(BaseModel):
    norm_probe: dict[Option, Any] | None = None

    @model_validator(mode="after")
    def check_kernels(self) -> Self:
        """Refuses fused kernels, also those that Axolotl's own validators have turned on."""
        sites = (self.norm_probe or {}).get("sites") or "all"
        on = [kernel for kernel in KERNELS if getattr(self, kernel, None)]
        if on and set(chosen("norm_probe.sites", sites, SITES)) & {*FORWARD, *BACKWARD}:
            raise ValueError(
                f"norm_probe: {', '.join(on)} bypass the hooks of the LoRA layers: set "
                f"{', '.join(f'{kernel}: false' for kernel in KERNELS)}, or measure weights only: "
                "norm_probe: {sites: [A, B, delta_w, adapter_grad, adapter_update]}"
            )
        return self


class NormProbePlugin(BasePlugin):
    def get_input_args(self) -> str:
        return "study.integrations.axolotl.NormProbeArgs"

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Seed torch before the adapter is drawn. Axolotl seeds later, in its trainer."""
        if cfg.get("seed") is not None and not is_seeded():
            torch.manual_seed(cfg.get("seed"))

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        paths = [source.get("path") for source in cfg.get("datasets") or []]
        options = {
            "results": "results/axolotl",
            "data": ", ".join(str(path) for path in paths if path) or None,
            "note": UNSEEDED if cfg.get("seed") is None else "",
        }
        given = cfg.get("norm_probe") or {}
        given = {key: value for key, value in given.items() if value is not None}
        return [NormProbeCallback(trainer, **options | given)]
