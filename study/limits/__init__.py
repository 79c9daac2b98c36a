"""Runs that no finite rank is: SGD at infinite rank, and at any rank for the price of a small one."""

from study.limits.infinite import InfiniteRankBank
from study.limits.rank_free import RankFreeBank, equivalent_pair, sample_factor, sample_pair

__all__ = ["InfiniteRankBank", "RankFreeBank", "equivalent_pair", "sample_factor", "sample_pair"]
