"""Norm probes in Axolotl: one line in its YAML, and one more to change defaults::

plugins: [study.integrations.axolotl.NormProbePlugin]
norm_probe: {results: results/mine, steps: [0, 1, 10]}
lora_mlp_kernel: false      # fused kernels bypass the layers' hooks
lora_qkv_kernel: false
lora_o_kernel: false
"""

from typing import TYPE_CHECKING, Any

from study.config import chosen
from study.errors import StudyError, short
from study.vocabulary.quantities import BACKWARD, FORWARD, SITES

if TYPE_CHECKING:
    BasePlugin = object
else:
    try:
        from axolotl.integrations.base import BasePlugin
    except ImportError:  # so that the module can be tested without Axolotl, which pins torch
        BasePlugin = object

KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
"""On a GPU, Axolotl turns these on unless its YAML sets them."""


class NormProbePlugin(BasePlugin):
    """Adds :class:`study.integrations.transformers.NormProbeCallback` to Axolotl's trainer.

    ``norm_probe`` in the YAML holds the callback's arguments. ``results`` defaults to
    ``results/axolotl``.
    """

    def get_input_args(self) -> str:
        """The key that the plugin adds to Axolotl's YAML."""
        return "study.integrations.axolotl_args.NormProbeArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Raises :class:`StudyError` if fused kernels would bypass the hooks of a chosen site.

        Axolotl calls it before it loads the model.
        """
        sites = chosen("norm_probe.sites", _options(cfg).get("sites", "all"), SITES)
        on = [kernel for kernel in KERNELS if cfg.get(kernel)]
        if on and set(sites) & {*FORWARD, *BACKWARD}:
            raise StudyError(
                f"{', '.join(on)} bypass the hooks of the LoRA layers: set "
                f"{', '.join(f'{kernel}: false' for kernel in KERNELS)}, or measure weights only: "
                "norm_probe: {sites: [A, B, delta_w, adapter_grad, adapter_update]}"
            )

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback for the trainer that Axolotl built."""
        from study.integrations.transformers import NormProbeCallback

        paths = [source.get("path") for source in cfg.get("datasets") or []]
        data = ", ".join(str(path) for path in paths if path) or None
        return [
            NormProbeCallback(
                trainer, **{"results": "results/axolotl", "data": data, **_options(cfg)}
            )
        ]


def _options(cfg: Any) -> dict[str, Any]:
    options = cfg.get("norm_probe") or {}
    if not hasattr(options, "items"):
        raise StudyError(
            f"norm_probe: {short(options)} has no keys: write norm_probe: {{results: results/mine}}"
        )
    return {key: value for key, value in options.items() if value is not None}
