"""`sluice lineage`: from a device's signal to a device's answer, each link read where it lies and checked."""
