"""Exact and near duplicates. Two rows are near duplicates if their answers are equal and their requests share most of
their word triples (Jaccard similarity): rows that teach the same thing twice.

Candidates come from MinHash signatures in eight bands of eight (Broder 1997): pairs at similarity 0.9 are found with
probability 0.99. Each candidate is then compared exactly.
"""

import re
import zlib

import numpy as np
from sluice_contracts.dataset import DatasetRow

BANDS, ROWS = 8, 8
BUCKET_LIMIT = 64
"""Rows compared with at most, a bucket: templates fill a bucket, and comparing all pairs would not end."""
_PRIME = np.uint64(2**61 - 1)
_RNG = np.random.default_rng(0)
_A = _RNG.integers(1, 2**29, BANDS * ROWS, dtype=np.uint64)
_B = _RNG.integers(0, 2**60, BANDS * ROWS, dtype=np.uint64)
_WORD = re.compile(r"[a-z0-9_]+")


def normalised(row: DatasetRow) -> str:
    """The row's text, lower-case, words only: what exact duplicates share."""
    return "\x1f".join(m.role + " " + " ".join(_WORD.findall(m.content.lower())) for m in row.messages)


def shingles(row: DatasetRow) -> frozenset[int]:
    """Hashes of the word triples of what the user says."""
    words = [w for m in row.messages if m.role == "user" for w in ("^", *_WORD.findall(m.content.lower()), "$")]
    return frozenset(zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(max(1, len(words) - 2)))


def _bands(items: frozenset[int]) -> list[bytes]:
    values = np.fromiter(items, dtype=np.uint64, count=len(items))
    signature = ((values[:, None] * _A + _B) % _PRIME).min(axis=0)
    return [signature[i * ROWS : (i + 1) * ROWS].tobytes() for i in range(BANDS)]


def similarity(a: frozenset[int], b: frozenset[int]) -> float:
    """Jaccard similarity of two sets."""
    return len(a & b) / len(a | b)


class NearDuplicates:
    """Remembers rows and tells whether a new one is a near duplicate of one of them."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._buckets: dict[tuple[str, int, bytes], list[frozenset[int]]] = {}

    def add(self, row: DatasetRow) -> bool:
        """True if `row` is new, and remembered; False if it is a near duplicate."""
        answers = "\x1f".join(m.content for m in row.messages if m.role == "assistant")
        items = shingles(row)
        keys = [(answers, i, band) for i, band in enumerate(_bands(items))]
        seen = {id(other): other for key in keys for other in self._buckets.get(key, ())}
        if any(similarity(items, other) >= self.threshold for other in seen.values()):
            return False
        for key in keys:
            bucket = self._buckets.setdefault(key, [])
            if len(bucket) < BUCKET_LIMIT:
                bucket.append(items)
        return True
