"""The device's receipt: what runs here and where it came from, for people and for `sluice lineage`."""

from pydantic import ValidationError
from sluice_contracts.device import DeviceReceipt, SyncReceipt

from sluice_edge import slots
from sluice_edge.audit import AuditLog
from sluice_edge.home import Home
from sluice_edge.signals import Signals


def device_receipt(home: Home) -> DeviceReceipt:
    """The state of this device. Raises ConfigurationError if `home` is none, or its pointer is damaged."""
    config, device = home.config(), home.device()
    at = slots.pointer(home)
    installed = slots.in_slot(home, at.slot) if at is not None else None
    before = slots.previous(home)
    entries, head = AuditLog(home.audit, device.audit_key).head()
    return DeviceReceipt(
        model=config.model,
        channel=config.channel,
        cohort=device.cohort,
        installed=installed.version if installed is not None else None,
        previous=before.version if before is not None else None,
        last_sync=_last_sync(home),
        consent=Signals(home).consent,
        audit_entries=entries,
        audit_head=head,
    )


def _last_sync(home: Home) -> SyncReceipt | None:
    try:
        return SyncReceipt.model_validate_json(home.last_sync.read_bytes())
    except (OSError, ValidationError):
        return None
