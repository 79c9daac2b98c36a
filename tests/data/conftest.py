"""Files of rows, and the token batches of a file.

Hypothesis draws the same examples each time, and a busy machine fails no test.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, settings

from study.config import DataConfig
from study.data.batches import Corpus, TokenTable, build_corpus
from study.models import tiny

slow = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=slow)
settings.load_profile("same")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` in the file ``path``, in the format of its ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus_of(file: Path, length: int, tokenizer: Any = None, **keys: Any) -> Corpus:
    """The batches of a file; those of the tiny model, whose eos is 256, without a ``tokenizer``."""
    keys = {"path": str(file), "heldout": 2, "seed": 0, **keys}
    config = DataConfig("file", sequence_length=length, **keys)
    return build_corpus(config, tokenizer or tiny.tokenizer(), 256)


def table_of(lengths: Sequence[int], room: int) -> TokenTable:
    """Examples of these lengths. The tokens of example ``i`` are ``i``; all are learned."""
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    starts = np.cumsum([0, *lengths])
    rows = [[row] for row in range(len(lengths))]
    return TokenTable(tokens, np.ones(len(tokens), bool), starts, rows, room, padding_id=0)
