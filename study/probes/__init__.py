"""Probes: measure an adapted model, with our banks or with PEFT's layers, at one optimizer step.

:mod:`~study.probes.norm_probe` has the probe, and how to use it in a training loop.
"""

from study.probes.alignment import Alignment
from study.probes.layers import active_adapters
from study.probes.norm_probe import NormProbe, Sent
