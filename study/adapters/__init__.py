"""Low-rank adapters on frozen linears: the adapters of K cells in one bank, placed by name."""

from study.adapters.bank import AdapterSpec, LoraBank, LoraPair, dense_weight, merged_once
from study.adapters.contraction import Contraction
from study.adapters.inject import adapted, resolve_targets
from study.adapters.truncation import truncating
