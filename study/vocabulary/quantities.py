"""The words of a measurement: where it is taken (sites), what is taken (stats), on which batch. Names only, for every
part alike."""

FORWARD = ("adapter_in", "adapter_out", "layer_out")
"""x; gamma B A x; W0 x + gamma B A x."""
BACKWARD = ("layer_out_grad", "adapter_in_grad")
"""dL/d layer_out; gamma A^T B^T dL/d layer_out, what the adapter itself passes back to its input."""
WEIGHTS = ("A", "B", "delta_w")
"""The factors; gamma B A."""
GRADIENTS = ("A_grad", "B_grad")
UPDATES = ("A_update", "B_update")
UNIONS = {"adapter_grad": GRADIENTS, "adapter_update": UPDATES}
"""Over A and B together; these are also taken over the whole model (model-wide adapter_grad: the paper's Figure 3)."""

MEASURED = (*FORWARD, *BACKWARD, *WEIGHTS, *GRADIENTS, *UPDATES)
SITES = (*MEASURED, *UNIONS)

MOMENTS = ("mean_abs", "rms", "m4", "max_abs", "norm", "descent", "nonfinite")
"""E|x|; sqrt(E x^2); (E x^4)^(1/4); the largest |x|; Frobenius; -<gradient, update>; 1 where not all is finite."""
SPECTRA = ("spectral", "stable_rank")
"""Of ``delta_w``: its largest singular value; (norm / spectral)^2."""
ALIGNMENTS = ("r_align", "r_sign", "r_diag", "r_back")
"""What finite-rank curves need to know of a layer (:class:`study.theory.Layer`), on the sites whose curves they are."""
STATS = (*MOMENTS, *SPECTRA, *ALIGNMENTS, "rho")
"""``rho``, of ``A``: ||dA x|| / ||A0 x||, how far A's motion counts beside its init."""
USUAL = (*MOMENTS, *SPECTRA)
"""What ``all`` stats are. The others cost a product with the inputs, or a weight gradient, per layer: name them."""

TRAIN, HELDOUT, NOISE = BATCHES = ("train", "heldout", "noise")
"""The step's own batch; one fixed batch that is never trained on; isotropic Gaussian x and dL/dy."""

MODEL_WIDE = "model"
"""What the columns ``layer`` and ``kind`` hold in a row over the whole model."""
