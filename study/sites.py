"""The words of a measurement: where it is taken (sites) and what is taken (stats). Names only, for every part alike."""

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

STATS = ("mean_abs", "rms", "m4", "max_abs", "norm", "descent", "nonfinite")
"""E|x|; sqrt(E x^2); (E x^4)^(1/4); the largest |x|; Frobenius; -<gradient, update>; 1 where not all is finite."""

MODEL_WIDE = "model"
"""What the columns ``layer`` and ``kind`` hold in a row over the whole model."""
