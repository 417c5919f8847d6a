"""Verdicts on live traffic that stay right however often one looks.

A canary is looked at every interval. A test made for one look, looked at after each interval, raises a false alarm in
a quarter of all harmless rollouts. Everything here is anytime-valid: the error rates hold over the whole rollout, at
every look, for ever. Pure functions of counts: no state, no NumPy.
"""

from sluice_operator.analysis.verdicts import judge

__all__ = ["judge"]
