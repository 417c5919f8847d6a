"""What machines cost an hour: the table that the platform team keeps in the chart's values.

There is no table of our own: list prices change, and nobody pays them. Amounts are decimals: floating point does not
add cents.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from sluice_contracts.hardware import ReplicaHardware

from sluice_operator.children.hardware import machine, quantity

CURRENCY = "USD"
MOST = Decimal(1_000_000)
"""No accelerator costs a million an hour: more is a slip of the keyboard."""


class PricesError(ValueError):
    """The table does not read; the message names the entry."""


@dataclass(frozen=True)
class Prices:
    """Prices of one hour of one accelerator (a GPU or a TPU chip), and under `cpu` of one vCPU."""

    currency: str = CURRENCY
    on_demand: Mapping[str, Decimal] = field(default_factory=dict)
    spot: Mapping[str, Decimal] = field(default_factory=dict)

    def worker_hour(self, hardware: ReplicaHardware) -> Decimal | None:
        """One hour of one worker pod; None where the table does not know its accelerator.

        A price stands for the accelerator's whole share of its machine, so that CPU and memory beside a GPU are not
        counted twice. On-demand prices never stand in for spot ones: they would be too high, and nobody would notice.
        """
        unit = (self.spot if hardware.spot else self.on_demand).get(hardware.accelerator.value)
        if unit is None:
            return None
        box = machine(hardware)
        units = Decimal(box.gpus or box.tpu_chips)
        return unit * (units or Decimal(str(quantity(hardware.resources.cpu))))


def parse_prices(text: str) -> Prices:
    """The table from `{"currency": …, "onDemand": {accelerator: price}, "spot": {…}}`; empty text is an empty table.

    Raises PricesError.
    """
    try:
        found = json.loads(text or "{}", parse_float=Decimal)
    except ValueError as error:
        raise PricesError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise PricesError("is no object with currency, onDemand and spot")
    if unknown := sorted(set(found) - {"currency", "onDemand", "spot"}):
        raise PricesError(f"has the unknown field {unknown[0]}: expected currency, onDemand and spot")
    return Prices(str(found.get("currency") or CURRENCY), _column(found, "onDemand"), _column(found, "spot"))


def _column(table: Mapping[str, Any], name: str) -> dict[str, Decimal]:
    entries = table.get(name) or {}
    if not isinstance(entries, dict):
        raise PricesError(f"{name} is no map from accelerator to price")
    return {accelerator: _price(f"{name}.{accelerator}", value) for accelerator, value in entries.items()}


def _price(where: str, value: object) -> Decimal:
    try:
        price = Decimal(str(value))
        fits = 0 <= price < MOST
    except InvalidOperation:
        fits = False
    if not fits:
        raise PricesError(f"{where} is {value!r}: expected an amount such as 0.71")
    return price
