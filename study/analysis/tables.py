"""The tables of a study that analysis and figures read: what ``study.load(folder)`` returns."""

from typing import Protocol

import pandas as pd


class Tables(Protocol):
    """The tables that every figure can read (ARCHITECTURE.md)."""

    @property
    def cells(self) -> pd.DataFrame: ...
    @property
    def metrics(self) -> pd.DataFrame: ...
    @property
    def probes(self) -> pd.DataFrame: ...
    @property
    def exponents(self) -> pd.DataFrame: ...


class AnalysedTables(Tables, Protocol):
    """With the derived tables that expectations are compared with."""

    @property
    def stable(self) -> pd.DataFrame: ...
    @property
    def rates(self) -> pd.DataFrame: ...
    @property
    def distances(self) -> pd.DataFrame: ...
