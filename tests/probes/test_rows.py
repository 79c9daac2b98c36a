"""Every row of the vocabulary's sites, stats and inits has the function that it needs."""

from study.adapters.inits import DRAWS
from study.probes.sites import TENSORS
from study.probes.statistics import LOST, STATISTICS, WRITTEN
from study.vocabulary.inits import INITS
from study.vocabulary.quantities import ALIGNMENTS, MEASURED, STATS


def test_every_site_is_computed_from_one_source() -> None:
    assert sorted(site for of_source in TENSORS.values() for site in of_source) == sorted(MEASURED)


def test_every_stat_is_computed_from_sums_or_written() -> None:
    """A new row without a function would otherwise be NaN, with no error."""
    assert set(WRITTEN) == {"descent", "spectral", *ALIGNMENTS, "rho", LOST}
    assert set(STATISTICS) == set(STATS) - set(WRITTEN)


def test_every_init_has_a_draw() -> None:
    assert set(DRAWS) == set(INITS)
