"""GPUs that a plan can be made for without having one: what their makers say of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceRow:
    """One GPU, as its data sheet describes it, without sparsity.

    - ``label``: its whole name;
    - ``gib``: the memory that a process sees, in GiB, rounded down;
    - ``bf16``, ``float32``: the peak of matrix products, in TFLOP/s. float32 is without TF32, which
      training does not use.
    """

    label: str
    gib: float
    bf16: float
    float32: float


DEVICES: dict[str, DeviceRow] = {
    "h200": DeviceRow("NVIDIA H200 SXM 141 GB", 139, 989, 67),
    "h100": DeviceRow("NVIDIA H100 SXM 80 GB", 79, 989, 67),
    "a100": DeviceRow("NVIDIA A100 SXM 80 GB", 79, 312, 19.5),
    "l40s": DeviceRow("NVIDIA L40S 48 GB", 44, 362, 91.6),
    "rtx4090": DeviceRow("NVIDIA GeForce RTX 4090 24 GB", 23, 165, 82.6),
}

MATMUL_SHARE = 0.7
"""Assumed: the share of the data sheet's peak that a large product achieves."""
