"""Held-out suites with exact answers, paired comparison with the stable version, and the gates."""
