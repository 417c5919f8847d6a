"""Builders of the objects the operator owns: one file per kind of child, each a pure function of plain data."""
