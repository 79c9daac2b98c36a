"""Low-rank adapters on frozen linears: K cells' adapters in one bank, found and wrapped by name."""

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, features
from study.adapters.inject import adapted, resolve_targets
from study.adapters.truncation import truncating

__all__ = ["AdapterSpec", "LoraBank", "LoraPair", "adapted", "features", "resolve_targets", "truncating"]
