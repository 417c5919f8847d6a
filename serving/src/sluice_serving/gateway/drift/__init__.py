"""Drift: how what people ask, and are answered, changes from day to day. Counts only; docs/drift.md."""
