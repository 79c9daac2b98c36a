"""The ``norm_probe`` key of Axolotl's YAML, as the pydantic models that Axolotl checks it with."""

from pydantic import BaseModel


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
