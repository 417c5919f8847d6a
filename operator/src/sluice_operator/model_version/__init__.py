"""ModelVersion: a manifest that is verified, then promoted by a pool, then published to devices."""
