"""``data=random_strings``: random strings, each after a key, to measure what an adapter can store.

No string can be guessed from others: a model that predicts one has stored its 96 bits.
"""

import random
from collections.abc import Iterator

from study.data.examples import Example
from study.vocabulary.sources import BITS, KEY, STRING

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
MOST = 65536
_GENERATOR_SEED = 20261130  # fixed, as in data=xbrl_extract


def random_strings() -> Iterator[Example]:
    """Yield ``MOST`` examples, always the same. ``data.max_samples`` says how many are used."""
    # Only random() is called: Python promises the same sequence in all versions only for it.
    rng, keys = random.Random(_GENERATOR_SEED), set[str]()
    while len(keys) < MOST:
        text = "".join(ALPHABET[int(rng.random() * 2**BITS)] for _ in range(KEY + STRING))
        if text[:KEY] not in keys:
            keys.add(text[:KEY])
            yield Example(f"{text[:KEY]}:", text[KEY:])
