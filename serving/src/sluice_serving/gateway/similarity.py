"""How alike two texts are. Pure.

Character n-grams, as chrF has them (M. Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT 2015):
precision and recall of the n-grams of one to six characters, spaces left out, averaged over the lengths; their
harmonic mean. With both weighted alike (chrF's beta = 1) it does not matter which text is the reference. It knows no
language and needs no model; it takes a paraphrase for a difference, which is why a candidate's scores are compared with
those of stable's own second answers and never taken by themselves.
"""

from collections import Counter

ORDERS = range(1, 7)
LENGTH = 2000
"""Characters that are compared: some milliseconds of work."""


def similarity(a: str, b: str) -> float:
    """From 0 (nothing in common) to 1 (the same but for spaces)."""
    a, b = ("".join(text[:LENGTH].split()) for text in (a, b))
    if not a or not b:
        return float(a == b)
    precision = recall = 0.0
    orders = [n for n in ORDERS if n <= max(len(a), len(b))]
    for n in orders:
        mine, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        common = (mine & theirs).total()
        precision += common / max(1, mine.total())
        recall += common / max(1, theirs.total())
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall) / len(orders)


def length_ratio(a: str, b: str) -> float:
    """The shorter text's length over the longer one's; 1 for two empty ones."""
    longer = max(len(a), len(b))
    return min(len(a), len(b)) / longer if longer else 1.0
