"""What is measured, where the hooks sit, and how numbers leave the device; on our banks and on PEFT's layers alike."""

from study.probes.alignment import Alignment
from study.probes.layers import active_adapters
from study.probes.norm_probe import NormProbe, Sent

__all__ = ["Alignment", "NormProbe", "Sent", "active_adapters"]
