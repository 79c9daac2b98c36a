"""Norm probes in Axolotl: one line in its YAML, and a second for whatever is not as by default::

plugins: [study.integrations.axolotl.NormProbePlugin]
norm_probe: {results: results/mine, steps: [0, 1, 10]}
lora_mlp_kernel: false      # fused kernels go around the layers' hooks
lora_qkv_kernel: false
lora_o_kernel: false
"""

from typing import TYPE_CHECKING, Any

from study.config import chosen
from study.errors import StudyError
from study.vocabulary.quantities import BACKWARD, FORWARD, SITES

if TYPE_CHECKING:
    BasePlugin = object
else:
    try:
        from axolotl.integrations.base import BasePlugin
    except ImportError:  # to be read and tested where Axolotl, which pins torch, is not installed
        BasePlugin = object

KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
"""Axolotl turns these on by itself on a GPU where its YAML does not mention them."""


class NormProbePlugin(BasePlugin):
    """Adds :class:`study.integrations.transformers.NormProbeCallback` to Axolotl's trainer.

    ``norm_probe`` in the YAML holds the callback's arguments; ``results`` is by default ``results/axolotl``.
    """

    def get_input_args(self) -> str:
        """The key that the plugin adds to Axolotl's YAML."""
        return "study.integrations.axolotl_args.NormProbeArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Before anything is loaded: raises :class:`StudyError` where fused kernels would hide what is asked for."""
        sites = chosen("norm_probe.sites", _options(cfg).get("sites", "all"), SITES)
        on = [kernel for kernel in KERNELS if cfg.get(kernel)]
        if on and set(sites) & {*FORWARD, *BACKWARD}:
            raise StudyError(
                f"{', '.join(on)} multiply around the LoRA layers, whose hooks then see nothing: set "
                f"{', '.join(f'{kernel}: false' for kernel in KERNELS)}, or measure weights alone with "
                "norm_probe: {sites: [A, B, delta_w, adapter_grad, adapter_update]}"
            )

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback, on the trainer as Axolotl built it."""
        from study.integrations.transformers import NormProbeCallback

        data = ", ".join(str(source["path"]) for source in cfg.get("datasets") or []) or None
        return [
            NormProbeCallback(
                trainer, **{"results": "results/axolotl", "data": data, **_options(cfg)}
            )
        ]


def _options(cfg: Any) -> dict[str, Any]:
    return {key: value for key, value in (cfg.get("norm_probe") or {}).items() if value is not None}
