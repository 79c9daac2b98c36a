"""``gamma B A`` of every layer: formed once in a step, and used for all sites that need it.

A step that merges the adapters into the weights forms it anyway, and shows it
(:class:`study.adapters.contraction.Shows`). Otherwise the probe forms it.
"""

from torch import Tensor

from study.adapters.bank import LoraPair
from study.probes.product import Product
from study.probes.recorder import Recorder, in_backward
from study.probes.spectra import Core, core, largest_singular_values
from study.vocabulary.quantities import SPECTRA


class DeltaW:
    """Measures the site ``delta_w``, and lends its products to the sites of sampled tokens.

    The largest singular value of experts' delta_w, a stack of many matrices, is not computed.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.is_wanted = "delta_w" in recorder.wanted
        self._spectra = not set(SPECTRA).isdisjoint(recorder.stats)
        self.lends = bool(
            recorder.wanted_of("sampled_inputs") + recorder.wanted_of("sampled_output_gradients")
        )
        self._held: dict[tuple[int, int], Product] = {}
        self._measured: set[tuple[int, int]] = set()
        self._cores: dict[tuple[int, int], Core] = {}

    @property
    def takes_products(self) -> bool:
        """Whether products that a pass forms are of use."""
        return self.is_wanted or self.lends

    def product(self, layer: int, cell: int, pair: LoraPair) -> Product:
        """``gamma B A``, to multiply sampled tokens by. Measures delta_w if that is needed too."""
        if (layer, cell) not in self._held and self._wants(layer, cell):
            self._take(layer, cell, Product(pair))
        return self._held.get((layer, cell), Product(pair))

    def release(self, layer: int, cell: int) -> None:
        """No more tokens of the layer are multiplied by the product."""
        self._held.pop((layer, cell), None)

    def release_all(self) -> None:
        """No tokens are multiplied any more."""
        self._held = {}

    def measure(self) -> None:
        """Measure every layer that no pass has measured, and the spectra of all."""
        for index, layer in enumerate(self.recorder.layers):
            wanted = [self._wants(index, cell) for cell in range(self.recorder.cells)]
            for cell, pair in enumerate(layer.whole_pairs() if any(wanted) else ()):
                if wanted[cell]:
                    self._take(index, cell, Product(pair))
                    self.release(index, cell)
        values = largest_singular_values(list(self._cores.values()))
        for (index, cell), value in zip(self._cores, values, strict=True):
            self.recorder.write("delta_w", index, cell, lambda value: {"spectral": value}, value)
        self._cores = {}

    def _wants(self, layer: int, cell: int) -> bool:
        of_plain_lora = not self.recorder.layers[layer].variant
        return self.is_wanted and of_plain_lora and (layer, cell) not in self._measured

    def take(self, layer: int, first: int, BA_kOD: Tensor) -> None:
        """Take the products of the cells from ``first`` on, which a pass has formed."""
        if in_backward():
            return  # the second run of a checkpointed layer
        pairs = self.recorder.layers[layer].pairs()[first:]
        for cell, (pair, BA_OD) in enumerate(zip(pairs, BA_kOD, strict=False), start=first):
            self._take(layer, cell, Product(pair, BA_OD))

    def _take(self, layer: int, cell: int, product: Product) -> None:
        """Measure a product if it is wanted, and hold it if tokens should be multiplied by it."""
        recorder = self.recorder
        with recorder.measuring():
            if product.is_compact:
                product = product.formed()
            if self._wants(layer, cell):
                self._measured.add((layer, cell))
                recorder.add("product", layer, cell, product)
                if self._spectra and not recorder.layers[layer].experts:
                    self._cores[layer, cell] = _core(product)
        if product.is_compact and self.lends:
            self._held[layer, cell] = product


def _core(product: Product) -> Core:
    """The core of ``delta_w``, from the product or from its factors, whichever is smaller."""
    A_RD, B_OR, gamma = product.pair
    BA_OD = product.BA_OD if product.is_compact else None
    scale, square_mm = core(B_OR.float(), A_RD.float()) if BA_OD is None else core(BA_OD)
    return Core(scale * gamma, square_mm)
