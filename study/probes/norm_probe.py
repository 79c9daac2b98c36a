"""Measure every adapted layer at one optimizer step.

:func:`study.record` does this around your own loop and writes a study. By hand::

    probe = NormProbe(model)
    ...
    with probe.watch(attention_mask):      # around each micro-batch; hooks exist only inside
        model(...).loss.backward()
    probe.before_update()                  # before clipping
    optimizer.step()
    probe.after_update()
    table = probe.collect(step)[0]         # one frame per cell; the probe is empty again

All sums stay on the device until :meth:`NormProbe.collect` copies them to the host at once. To
avoid blocking on the device, use :meth:`NormProbe.send`.

Letters: ``K`` cells, ``B`` sequences, ``T`` tokens of a sequence.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import reduce
from operator import add
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from study.adapters.bank import Stack
from study.probes.activations import Activations, Sample
from study.probes.alignment import Alignment
from study.probes.delta_w import DeltaW
from study.probes.layers import adapted_layers
from study.probes.measurements import Added, Measurements, Sent
from study.probes.spans import Spans
from study.probes.statistics import chunks_of
from study.vocabulary.quantities import (
    BACKWARD,
    DESCENT,
    GRADIENTS,
    RHO,
    SITES,
    TRAIN,
    UNIONS,
    UPDATES,
    USUAL,
)

Gradients = Sequence[Sequence[tuple[Tensor | None, Tensor | None]]]
"""Those of A and B by layer and stack; None for a factor without one."""


class Update:
    """The change of a stack of weights in a step, ``[k, m, F]``, chunk by chunk, and its products
    with the ``gradient``, if any."""

    def __init__(self, weight: Tensor, before: Tensor, gradient: Tensor | None) -> None:
        self.weight, self.before, self.gradient = weight, before, gradient
        self._products: list[Tensor] = []

    def numel(self) -> int:
        return self.weight.numel()

    def chunks(self) -> Iterator[Tensor]:
        read = [x for x in (self.weight, self.before, self.gradient) if x is not None]
        for new, old, *gradient in zip(*(chunks_of(x.flatten(1, -2)) for x in read), strict=True):
            chunk = new.float() - old.float()
            if gradient:
                # A BLAS product could round differently in another run (memory alignment).
                self._products.append((gradient[0].float() * chunk).flatten(1).sum(1))
            yield chunk

    def descent(self, factor_k: Tensor) -> dict[str, Tensor]:
        """The inner product with the gradient, of the chunks made so far, times ``factor_k``."""
        none = torch.zeros_like(factor_k)  # of a process with an empty part
        return {"descent": reduce(add, self._products, none) * factor_k}


class NormProbe:
    """Moments of activations, gradients, weights and updates, per adapted layer and cell.

    - ``sites``, ``stats``: names of ``SITES`` and ``STATS`` of :mod:`study.vocabulary.quantities`;
    - ``tokens``: of each micro-batch, evenly spaced, for ``adapter_out`` and ``adapter_in_grad``,
      with dropout as trained. The alignments use those of the first micro-batch, and ``rho`` those
      of all, without dropout. For PEFT's adapters ``rho`` is the motion of A since the probe was
      made;
    - ``alignment``: the accumulated weight gradients; None: no alignment is measured;
    - ``adapter``: the PEFT adapter to read, if several are active.

    All other moments are over the real tokens and all features of one optimizer step. Gradients are
    those of backward: of the mean loss if the loss is a mean.

    Passes with PEFT's adapters off are not measured. If a layer's output is not
    ``W0 x + gamma B A x`` (DoRA), the sites of ``gamma B A`` are left out; :attr:`variants` names
    such layers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sites: Iterable[str] = SITES,
        stats: Iterable[str] = USUAL,
        tokens: int = 128,
        alignment: Alignment | None = None,
        adapter: str | None = None,
    ) -> None:
        self.sites, self.stats = tuple(sites), tuple(stats)
        self.layers = adapted_layers(model, adapter, keeps_A=RHO in self.stats)
        self.tokens, self.alignment = tokens, alignment
        self._wanted = {part for site in self.sites for part in UNIONS.get(site, (site,))}
        self._moved = [site in self._wanted for site in UPDATES]
        """Whether the updates of A and of B are wanted."""
        self._descends = DESCENT.stat in self.stats and DESCENT.site in self.sites
        self._reset()

    def _reset(self) -> None:
        self._measurements = Measurements(self.layers, self._wanted, self.stats)
        self._delta_w = DeltaW(self._measurements)
        self._spans = Spans(self._measurements)
        self._activations = Activations(
            self._measurements, self._delta_w, self._spans, self.tokens, self.alignment
        )
        self._before: list[list[Stack]] = []
        self._gradients: Gradients | None = None

    @property
    def needs_backward(self) -> bool:
        """Whether any site or statistic is of a gradient. If not, a forward pass is enough."""
        return self._spans.shares or not self._wanted.isdisjoint(BACKWARD + GRADIENTS)

    @property
    def variants(self) -> dict[str, str]:
        return {layer.name: layer.variant for layer in self.layers if layer.variant}

    def watch(
        self, real_BT: Tensor | None = None, sample: Sample | None = None
    ) -> AbstractContextManager[int]:
        """Context manager: measure the forward and backward pass of one micro-batch of every cell.

        Its value is the number of the pass, for :meth:`forget`. ``real_BT``, ``[K * B, T]``: true
        on real tokens, as an attention mask; None: all are real. ``sample``: the tokens to sample,
        if processes divide the micro-batch.
        """
        return self._activations.watch(real_BT, sample)

    def forget(self, passes: Collection[int]) -> None:
        """Drop what the passes of these numbers measured."""
        self._measurements.forget(passes)
        self._spans.forget(passes)

    def feed_noise(self) -> None:
        """Measure ``adapter_out`` and ``adapter_in_grad`` on the same standard normal x and
        dL/dy."""
        self._activations.feed_noise()

    def before_update(
        self,
        gradients: Gradients | None = None,
        total: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        """Measure the weights and their gradients, after backward and before clipping, or with
        copies of the ``gradients`` from before clipping, which :meth:`after_update` reads too.
        ``total``: the sum of a tensor over the processes that divide a batch."""
        self._delta_w.measure()
        self._spans.measure(total)
        self._gradients = gradients
        for index, layer in enumerate(self.layers):
            before = []
            for place, stack in enumerate(layer.stacks()):
                of_stack = gradients[index][place] if gradients else stack.gradients
                A_kRD, B_kOR = (
                    weight.clone() if moved else weight
                    for weight, moved in zip(stack[1:3], self._moved, strict=True)
                )
                before.append(stack._replace(A_kRD=A_kRD, B_kOR=B_kOR))
                # The copy is read, not the weight: it is in the cache.
                self._measurements.add("weights", index, stack, before[-1])
                self._measurements.add("gradients", index, stack, *of_stack)
            self._before.append(before)
        self._measurements.adder.add_up()  # before clipping and the update change them in place

    def after_update(self, clip_factors: Sequence[float] | Tensor | None = None) -> None:
        """Measure the updates. Call it after the optimizer's step, before gradients are cleared.

        ``clip_factors``: the factor by which clipping multiplied each cell's ``.grad``, as numbers
        or as a float32 tensor on the device, ``[K]``; None if it was not clipped. ``descent`` uses
        the gradient before clipping.
        """
        measurements = self._measurements
        if clip_factors is None or self._gradients:  # copies from before clipping
            clip_factors = [1.0] * measurements.cells
        # Descent is minus the inner product with the gradient before clipping.
        factor_K = -1 / torch.as_tensor(clip_factors).to(measurements.device, non_blocking=True)
        for index, befores in enumerate(self._before):
            stacks = self.layers[index].stacks()
            for place, (stack, before) in enumerate(zip(stacks, befores, strict=True)):
                given = self._gradients
                gradients = given[index][place] if given else stack.gradients
                each = zip(self._moved, stack[1:3], before[1:3], gradients, strict=True)
                updates = [  # a weight without a gradient is frozen
                    Update(new, old, dw if self._descends else None)
                    if moved and dw is not None
                    else None
                    for moved, new, old, dw in each
                ]
                measurements.add("updates", index, stack, *updates)
                for site, update in zip(UPDATES, updates, strict=True):
                    if update is not None and update.gradient is not None:
                        factor_k = factor_K[stack.each]
                        measurements.write(site, index, stack.first, update.descent, factor_k)
        self._before, self._gradients = [], None

    def collect(self, step: int, batch: str = TRAIN, **shared: Any) -> list[pd.DataFrame]:
        """One frame per cell in the form of the ``probes`` table, without ``cell_id``.

        Each measured site has a row per layer; a union of A and B also has one over the whole
        model. A site that was not measured has no row, such as an update at the end of a run. The
        probe is empty afterwards.
        """
        sent = self.send(step, batch, **shared)
        return [sent.frame(cell) for cell in range(self._measurements.cells)]

    def send(
        self,
        step: int,
        batch: str = TRAIN,
        added: Added | None = None,
        elsewhere: Collection[str] = (),
    ) -> Sent:
        """Like :meth:`collect`, without waiting for the device. ``added``: adds up what processes
        measured, which all make this call. ``elsewhere``: what another process has too, and
        adds."""
        found = self._measurements
        found.send(added, elsewhere)
        self._reset()
        return Sent(found, self.sites, step, batch)
