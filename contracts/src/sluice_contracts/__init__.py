"""The types that cross a boundary between Sluice's rooms."""
