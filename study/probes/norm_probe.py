"""Measure every adapted layer at one optimizer step.

A few lines in any training loop, ours or a bare one over PEFT::

    probe = NormProbe(model)
    ...
    with probe.watch(attention_mask):      # around each micro-batch; hooks live only in here
        model(...).loss.backward()
    probe.before_update()                  # before clipping
    optimizer.step()
    probe.after_update()
    table = probe.collect(step)[0]         # one frame per cell; the probe is empty again

All sums stay on the device and leave it by one copy, in :meth:`NormProbe.collect`, or, where the device had better not
be waited for, :meth:`NormProbe.send`. Letters: ``K`` cells,
``S`` sites, ``L`` layers, ``N`` tokens of a cell, ``n`` sampled tokens, ``D`` / ``O`` in / out features, ``R`` rank.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from study.adapters.bank import LoraPair, generator_for
from study.probes.alignment import Alignment
from study.probes.frames import frame
from study.probes.layers import adapted_layers
from study.probes.moments import AS_WRITTEN, DESCENT, Ledger, scaled_sums
from study.probes.spectra import Core, core, largest_singular_values
from study.vocabulary.quantities import (
    BACKWARD,
    FORWARD,
    GRADIENTS,
    MEASURED,
    SITES,
    SPECTRA,
    TRAIN,
    UNIONS,
    UPDATES,
    USUAL,
)


class Rows(NamedTuple):
    """Where the real tokens and the padding are among a cell's ``[N, F]``; None stands for a cell without padding."""

    real: Tensor
    padding: Tensor


OF_PRODUCT = ("adapter_out", "adapter_in_grad", "delta_w")
"""Sites computed from ``gamma B A``."""


class NormProbe:
    """Moments of activations, gradients, weights and updates, per adapted layer and cell.

    ``sites`` and ``stats`` choose from ``SITES`` and ``STATS`` of :mod:`study.vocabulary.quantities`. Moments are over the real tokens
    and all features of one optimizer step, all its micro-batches together. ``adapter_out`` and ``adapter_in_grad``,
    which no hook can read everywhere, are computed from (x, dL/dy, A, B, gamma) on ``tokens`` evenly spaced real tokens
    of the first micro-batch, as are ``rho`` and the numbers of ``alignment`` (None: not measured). Gradients are taken
    as they stand after backward: of the mean loss where the loss is a mean.

    Of a PEFT model one active adapter is read (``adapter``: its name, where several are active). A layer that PEFT runs
    with its adapters off is not measured in that pass. Where an output is not ``W0 x + gamma B A x`` (DoRA), the sites
    that say what ``gamma B A`` does are left out; :attr:`variants` names such layers.

    Raises :class:`study.errors.StudyError` where ``model`` has no LoRA layer, or none of ``adapter``.
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
        self.layers = adapted_layers(model, adapter)
        self.sites, self.stats, self.tokens, self.alignment = (
            tuple(sites),
            tuple(stats),
            tokens,
            alignment,
        )
        self._wanted = {
            *sites,
            *(part for union in UNIONS if union in sites for part in UNIONS[union]),
        }
        self._rho = "rho" in stats and "A" in self._wanted
        pairs = self.layers[0].pairs()
        self._cells, self._device = len(pairs), pairs[0].A_RD.device
        self._reset()

    @property
    def needs_backward(self) -> bool:
        """Whether any of the sites is a gradient: a forward pass alone will do where none is."""
        return bool(self._wanted.intersection(BACKWARD + GRADIENTS))

    @property
    def variants(self) -> dict[str, str]:
        """The layers whose output is another than ``W0 x + gamma B A x``, with what PEFT calls it."""
        return {layer.name: layer.variant for layer in self.layers if layer.variant}

    def _reset(self) -> None:
        self._ledger = Ledger((self._cells, len(MEASURED), len(self.layers)))
        self._weights_before: list[list[tuple[Tensor, Tensor]]] = []
        self._first_micro_batch = True
        self._input: tuple[Tensor, list[tuple[Tensor, int]]] | None = None

    # Activations and their gradients, by hooks.

    @contextmanager
    def watch(self, real_BT: Tensor | None = None) -> Iterator[None]:
        """Measure the forward and backward pass inside: one micro-batch of every cell.

        ``real_BT``, ``[K * B, T]``, is true (or 1) on real tokens, as an attention mask is; None: every token is real.
        """
        rows_K: list[Rows | None] = [None] * self._cells
        if real_BT is not None:
            rows_K = [self._rows(real.flatten()) for real in real_BT.bool().chunk(self._cells)]
        hooked = bool(self._wanted.intersection(FORWARD + BACKWARD)) or self._rho
        hooks = [
            layer.module.register_forward_hook(partial(self._on_forward, index, rows_K))
            for index, layer in enumerate(self.layers)
            if hooked
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._input = None
        self._first_micro_batch = False

    def _rows(self, real_N: Tensor) -> Rows | None:
        if real_N.all():
            return None
        return Rows(*(mask_N.nonzero().flatten().to(self._device) for mask_N in (real_N, ~real_N)))

    def _on_forward(
        self,
        layer: int,
        rows_K: list[Rows | None],
        _: nn.Module,
        args: tuple[Tensor, ...],
        y: Tensor,
    ) -> None:
        if not self.layers[layer].is_on():
            return
        if y.requires_grad and self._wanted.intersection(BACKWARD):
            # Under checkpointing a layer runs twice, but only one of its outputs is in the graph and is asked this.
            y.register_hook(partial(self._on_backward, layer, rows_K, self._first_micro_batch))
        if _in_backward():
            return  # a checkpointed layer running again: its activations have been measured
        x_KND = args[0].detach().reshape(self._cells, -1, args[0].shape[-1])
        y_KNO = y.detach().reshape(self._cells, -1, y.shape[-1])
        if "adapter_in" in self._wanted:
            if (
                self._input is None or self._input[0] is not args[0]
            ):  # q, k and v read one tensor, so do gate and up
                self._input = (
                    args[0],
                    [_token_sums(x_ND, rows) for x_ND, rows in zip(x_KND, rows_K, strict=True)],
                )
            for cell, sums in enumerate(self._input[1]):
                self._enter("adapter_in", layer, cell, *sums)
        for cell, (rows, pair) in enumerate(zip(rows_K, self.layers[layer].pairs(), strict=True)):
            if "layer_out" in self._wanted:
                self._enter("layer_out", layer, cell, *_token_sums(y_KNO[cell], rows))
            if self._first_micro_batch and ("adapter_out" in self._wanted or self._rho):
                self._add_inputs(layer, cell, self._sample(x_KND[cell], rows), pair)

    def _on_backward(
        self, layer: int, rows_K: list[Rows | None], first_micro_batch: bool, dy: Tensor
    ) -> None:
        dy_KNO = dy.reshape(self._cells, -1, dy.shape[-1])
        for cell, (rows, pair) in enumerate(zip(rows_K, self.layers[layer].pairs(), strict=True)):
            if "layer_out_grad" in self._wanted:
                self._enter("layer_out_grad", layer, cell, *_token_sums(dy_KNO[cell], rows))
            if first_micro_batch and "adapter_in_grad" in self._wanted:
                self._add_output_gradients(layer, cell, self._sample(dy_KNO[cell], rows), pair)

    def _sample(self, x_NF: Tensor, rows: Rows | None) -> Tensor:
        """The fixed tokens: ``n`` evenly spaced real ones, ``[n, F]`` float32."""
        count = len(x_NF) if rows is None else len(rows.real)
        spaced = (
            torch.linspace(0, count - 1, min(self.tokens, count), device=x_NF.device).round().long()
        )
        return x_NF[spaced if rows is None else rows.real[spaced]].float()

    # What is computed from a few tokens rather than read.

    def feed_noise(self) -> None:
        """Measure ``adapter_out`` and ``adapter_in_grad`` on isotropic Gaussian x and dL/dy of variance 1, ``tokens``
        of each: a draw per layer name, the same for every cell, rank and device."""
        for index, layer in enumerate(self.layers):
            stream = generator_for(0, f"{layer.name}/noise")
            x_nD = torch.randn(self.tokens, layer.d_in, generator=stream).to(self._device)
            dy_nO = torch.randn(self.tokens, layer.d_out, generator=stream).to(self._device)
            for cell, pair in enumerate(layer.pairs()):
                self._add_inputs(index, cell, x_nD, pair)
                self._add_output_gradients(index, cell, dy_nO, pair)

    def _add_inputs(self, layer: int, cell: int, x_nD: Tensor, pair: LoraPair) -> None:
        self._add("adapter_out", layer, cell, _adapter_out, x_nD, pair)
        if self.alignment is not None and "adapter_out" in self._wanted:
            self._write("adapter_out", layer, cell, self.alignment.of_inputs, layer, cell, x_nD)
        if self._rho and (A0_RD := self.layers[layer].initial_A(cell)) is not None:
            self._write("A", layer, cell, _rho, x_nD, pair, A0_RD)

    def _add_output_gradients(self, layer: int, cell: int, dy_nO: Tensor, pair: LoraPair) -> None:
        self._add("adapter_in_grad", layer, cell, _adapter_in_grad, dy_nO, pair)
        if self.alignment is not None and "adapter_in_grad" in self._wanted:
            self._write(
                "adapter_in_grad",
                layer,
                cell,
                self.alignment.of_output_gradients,
                layer,
                cell,
                dy_nO,
            )

    # Weights, their gradients and their updates, read between backward and the end of the step.

    def before_update(
        self, gradients: Sequence[Sequence[tuple[Tensor, Tensor]]] | None = None
    ) -> None:
        """Measure the weights and, where there are any, their gradients. Call after backward and before clipping.

        ``gradients``: those of A and B by layer and cell, for who does not leave them in ``.grad``.
        """
        spectra = bool(set(SPECTRA).intersection(self.stats))
        cores: dict[tuple[int, int], Core] = {}
        for layer, pairs in enumerate(layer.pairs() for layer in self.layers):
            for cell, pair in enumerate(pairs):
                delta_w = self._add("delta_w", layer, cell, _delta_w, pair)
                if spectra and delta_w is not None:
                    with self._as_they_are():
                        cores[layer, cell] = _core(pair, delta_w)
                given = gradients[layer][cell] if gradients else (pair.A_RD.grad, pair.B_OR.grad)
                for site, weight, gradient in zip("AB", pair[:2], given, strict=True):
                    self._add(site, layer, cell, Tensor.detach, weight)
                    if gradient is not None:
                        self._add(f"{site}_grad", layer, cell, Tensor.detach, gradient)
            if self._wanted.intersection(UPDATES):
                self._weights_before.append(
                    [(A.detach().clone(), B.detach().clone()) for A, B, _ in pairs]
                )
        for (layer, cell), value in zip(
            cores, largest_singular_values(list(cores.values())), strict=True
        ):
            self._ledger.write(
                (cell, MEASURED.index("delta_w"), layer), AS_WRITTEN["spectral"], value
            )

    def after_update(self, clip_factors: Sequence[float] | None = None) -> None:
        """Measure the updates. Call after the optimizer's step, before gradients are cleared.

        ``clip_factors``: what each cell's gradients were multiplied by when they were clipped (None: not clipped);
        ``descent`` is of the gradient before clipping.
        """
        factors = clip_factors or [1.0] * self._cells
        for layer, before_K in enumerate(self._weights_before):
            for cell, (befores, pair) in enumerate(
                zip(before_K, self.layers[layer].pairs(), strict=True)
            ):
                for site, before, weight in zip(UPDATES, befores, pair[:2], strict=True):
                    update = torch.sub(weight.detach(), before, out=before)
                    self._add(site, layer, cell, Tensor.detach, update)
                    if weight.grad is not None:
                        descent = (
                            -torch.dot(weight.grad.flatten().float(), update.flatten().float())
                            / factors[cell]
                        )
                        self._ledger.write((cell, MEASURED.index(site), layer), DESCENT, descent)
        self._weights_before = []

    # Numbers off the device.

    @contextmanager
    def _as_they_are(self) -> Iterator[None]:
        """Without a graph, and in float32 whatever the training runs in."""
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            yield

    def _add(
        self, site: str, layer: int, cell: int, tensor_of: Callable[..., Tensor], *parts: Any
    ) -> Tensor | None:
        """Enter the sums of ``tensor_of(*parts)``; nothing is computed where the site is not wanted."""
        if site not in self._wanted or (site in OF_PRODUCT and self.layers[layer].variant):
            return None
        with self._as_they_are():
            value = tensor_of(*parts)
            self._enter(site, layer, cell, scaled_sums(value), value.numel())
        return value

    def _enter(self, site: str, layer: int, cell: int, scaled: Tensor, count: int) -> None:
        self._ledger.add((cell, MEASURED.index(site), layer), scaled, count)

    def _write(
        self,
        site: str,
        layer: int,
        cell: int,
        stats_of: Callable[..., dict[str, Tensor]],
        *parts: Any,
    ) -> None:
        """Enter the statistics ``stats_of(*parts)``, scalars on the device, each in its column."""
        with self._as_they_are():
            for stat, value in stats_of(*parts).items():
                self._ledger.write((cell, MEASURED.index(site), layer), AS_WRITTEN[stat], value)

    def collect(self, step: int, batch: str = TRAIN) -> list[pd.DataFrame]:
        """One frame per cell in the form of the ``probes`` table (less ``cell_id``); the probe is then empty again.

        A row per measured site and layer, and one over the whole model for sites over A and B together; sites that were
        not measured (no update at the end of a run, no gradient without a backward pass) have no row.
        """
        sent = self.send(step, batch)
        return [sent.frame(cell) for cell in range(self._cells)]

    def send(self, step: int, batch: str = TRAIN) -> "Sent":
        """What :meth:`collect` returns, for later: numbers begin to leave the device, and nothing waits for them."""
        ledger = self._ledger
        ledger.send()
        self._reset()
        return Sent(
            ledger,
            partial(frame, self.layers, sites=self.sites, stats=self.stats, step=step, batch=batch),
        )


class Sent:
    """What a probe measured, on its way to the host."""

    def __init__(
        self, ledger: Ledger, frame_of: Callable[[np.ndarray, np.ndarray], pd.DataFrame]
    ) -> None:
        self._ledger, self._frame_of = ledger, frame_of

    @property
    def arrived(self) -> bool:
        """Whether :meth:`frame` would not wait for the device."""
        return self._ledger.arrived

    def frame(self, cell: int) -> pd.DataFrame:
        """A cell's rows of the ``probes`` table (less ``cell_id``)."""
        sums, counts = self._read
        return self._frame_of(sums[cell], counts[cell])

    @cached_property
    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        return self._ledger.read()


def _in_backward() -> bool:
    """Whether a backward pass is running: what torch's own checkpointing asks to tell a layer's second run."""
    return bool(torch._C._current_graph_task_id() != -1)


def _token_sums(x_NF: Tensor, rows: Rows | None) -> tuple[Tensor, int]:
    """The sums over the real tokens of one cell, and over how many elements they go."""
    if rows is None:
        return scaled_sums(x_NF), x_NF.numel()
    return scaled_sums(x_NF, rows.padding), len(rows.real) * x_NF.shape[1]


def _adapter_out(x_nD: Tensor, pair: LoraPair) -> Tensor:
    """``gamma B A x``, ``[n, O]``."""
    return (x_nD @ pair.A_RD.float().mT) @ pair.B_OR.float().mT * pair.gamma


def _adapter_in_grad(dy_nO: Tensor, pair: LoraPair) -> Tensor:
    """``gamma A^T B^T dy``, ``[n, D]``."""
    return (dy_nO @ pair.B_OR.float()) @ pair.A_RD.float() * pair.gamma


def _delta_w(pair: LoraPair) -> Tensor:
    """``gamma B A``, ``[O, D]``, formed at ``2 D O R`` FLOPs: the factors' Grams cost more above R = D O / (D + O)."""
    return pair.B_OR.float() @ pair.A_RD.float() * pair.gamma


def _core(pair: LoraPair, delta_w_OD: Tensor) -> Core:
    """Of ``delta_w``, through the factors, or through their product, which is there anyway, where that is smaller."""
    if pair.A_RD.numel() + pair.B_OR.numel() < delta_w_OD.numel():
        scale, square_mm = core(pair.B_OR.float(), pair.A_RD.float())
        return Core(scale * pair.gamma, square_mm)
    return core(delta_w_OD)


def _rho(x_nD: Tensor, pair: LoraPair, A0_RD: Tensor) -> dict[str, Tensor]:
    """``||dA x|| / ||A0 x||`` over the tokens, Frobenius.

    dA is formed first: ``A x - A0 x`` would lose it to rounding.
    """
    return {"rho": (x_nD @ (pair.A_RD - A0_RD).mT).norm() / (x_nD @ A0_RD.mT).norm()}
