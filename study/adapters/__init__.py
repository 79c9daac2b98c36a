"""Low-rank adapters on frozen linears: K cells' adapters in one bank, found and wrapped by name."""

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, features, has_dense_weight
from study.adapters.inject import adapted, resolve_targets

__all__ = ["AdapterSpec", "LoraBank", "LoraPair", "adapted", "features", "has_dense_weight", "resolve_targets"]
