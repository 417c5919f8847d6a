"""Proof that answers need no network, and that the proof itself would notice one."""
