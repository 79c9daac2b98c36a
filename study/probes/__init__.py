"""Probes: measure an adapted model, ours or PEFT's, at one step. Start with ``norm_probe``."""

from study.probes.alignment import Alignment
from study.probes.layers import active_adapters
from study.probes.norm_probe import NormProbe, Sent
