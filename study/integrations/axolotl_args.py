"""The ``norm_probe`` key of Axolotl's YAML, as the pydantic models that Axolotl checks it with."""

from typing import Self

from pydantic import BaseModel, model_validator

from study.config import chosen
from study.integrations.refusals import KERNELS
from study.vocabulary.quantities import BACKWARD, FORWARD, SITES


class NormProbeOptions(BaseModel, extra="forbid"):
    """The arguments of :class:`study.integrations.transformers.NormProbeCallback`.

    None is the callback's default.
    """

    results: str | None = None
    steps: str | list[int] | None = None
    every: int | None = None
    sites: str | list[str] | None = None
    stats: str | list[str] | None = None
    tokens: int | None = None
    data: str | None = None


class NormProbeArgs(BaseModel):
    """The key that the plugin adds to Axolotl's own."""

    norm_probe: NormProbeOptions | None = None

    @model_validator(mode="after")
    def check_kernels(self) -> Self:
        """Refuses fused kernels, which bypass the hooks of the sites that are asked for.

        Axolotl joins this class with its own. Its validators have run: a kernel that the YAML does
        not set is on by now, except where Axolotl does not use it.
        """
        sites = (self.norm_probe and self.norm_probe.sites) or "all"
        on = [kernel for kernel in KERNELS if getattr(self, kernel, None)]
        if on and set(chosen("norm_probe.sites", sites, SITES)) & {*FORWARD, *BACKWARD}:
            raise ValueError(
                f"norm_probe: {', '.join(on)} bypass the hooks of the LoRA layers: set "
                f"{', '.join(f'{kernel}: false' for kernel in KERNELS)}, or measure weights only: "
                "norm_probe: {sites: [A, B, delta_w, adapter_grad, adapter_update]}"
            )
        return self
