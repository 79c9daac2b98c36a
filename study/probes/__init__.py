"""Probes: measure an adapted model, with our banks or with PEFT's layers, at one optimizer step.

- :mod:`~study.probes.norm_probe`: the probe, and how to use it in a training loop;
- :mod:`~study.probes.layers`: the adapted layers of a model;
- :mod:`~study.probes.sites`, :mod:`~study.probes.statistics`: one function for each site and stat;
- :mod:`~study.probes.activations`, :mod:`~study.probes.delta_w`, :mod:`~study.probes.alignment`:
  the parts of the probe;
- :mod:`~study.probes.measurements`: from the device to a table.
"""

from study.probes.alignment import Alignment
from study.probes.layers import active_adapters
from study.probes.norm_probe import NormProbe, Sent
