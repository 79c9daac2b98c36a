"""The devices of a plan: ``8xh100``. Imports no torch: a wrong name is found before."""

import re
from dataclasses import dataclass

from study.errors import StudyError, short, unknown
from study.vocabulary.devices import DEVICES, MATMUL_SHARE, DeviceRow


@dataclass(frozen=True)
class Fleet:
    """``count`` GPUs of one kind, none of which need be in this machine."""

    count: int
    name: str

    @property
    def row(self) -> DeviceRow:
        """What its maker says of one of them."""
        return DEVICES[self.name]

    @property
    def memory(self) -> int:
        """Bytes of one device."""
        return int(self.row.gib * 2**30)

    def rate(self, precision: str) -> float:
        """FLOP/s of a large product on one device. An assumption, not a measurement."""
        peak = {"bf16": self.row.bf16, "float32": self.row.float32}[precision]
        return MATMUL_SHARE * peak * 1e12


def fleet(text: str) -> Fleet:
    """What ``--plan=8xh100`` or ``--plan=h100`` names.

    Raises :class:`StudyError` for anything else.
    """
    found = re.fullmatch(r"(?:([1-9]\d{0,5})x)?(\w+)", text)
    if found is None:
        raise StudyError(f"--plan={short(text)}: give a number of devices, such as 8xh100")
    if found[2] not in DEVICES:
        raise unknown("device of --plan", found[2], DEVICES)
    return Fleet(int(found[1] or 1), found[2])
