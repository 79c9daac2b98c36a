"""The ``norm_probe`` key of Axolotl's YAML: pydantic, which Axolotl brings, checks it with the rest."""

from pydantic import BaseModel


class NormProbeOptions(BaseModel, extra="forbid"):
    """The arguments of :class:`study.integrations.transformers.NormProbeCallback`; what is not set is its default."""

    results: str | None = None
    steps: str | list[int] | None = None
    every: int | None = None
    sites: str | list[str] | None = None
    stats: str | list[str] | None = None
    tokens: int | None = None
    data: str | None = None


class NormProbeArgs(BaseModel):
    """What the plugin adds to Axolotl's own keys."""

    norm_probe: NormProbeOptions | None = None
