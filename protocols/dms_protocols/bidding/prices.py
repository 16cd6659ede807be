"""The owner's price of each resource for an hour, exact to a millionth of the currency's unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct

from dms_resources.components import Resources
from dms_resources.ledger.leases import Price
from dms_resources.units import GIB

from .policies import Decision, PolicyRequest

__all__ = ["PricesPerHour"]

_LARGEST: Final = 2**63 - 1

Micros = Annotated[int, Meta(ge=0, le=10**15)]


class PricesPerHour(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A policy that sets a price and refuses nothing. All prices are in millionths of a unit of `currency` for an hour.

    `core` is the price of one core. `ram_gib`, `disk_gib` and `vram_gib` are the prices of one GiB (2^30 bytes). `gpu`
    is the price of each device in addition to its VRAM. `bid` is added once to each bid.
    """

    currency: Annotated[str, Meta(min_length=1, max_length=128)]
    core: Micros = 0
    ram_gib: Micros = 0
    disk_gib: Micros = 0
    gpu: Micros = 0
    vram_gib: Micros = 0
    bid: Micros = 0

    def price(self, resources: Resources) -> Price:
        """The price of these resources: summed exactly, then rounded up once to a whole millionth.

        Raises OverflowError if no message can carry the price.
        """
        vram = sum(gpu.vram for gpu in resources.gpus)
        sizes = self.ram_gib * resources.ram.size + self.disk_gib * resources.disk.size + self.vram_gib * vram
        # In thousandths of a GiB-th of a millionth, so that no intermediate result is rounded.
        exact = self.core * resources.cpu.cores.millicores * GIB + sizes * 1000
        micros = self.bid + self.gpu * len(resources.gpus) - (-exact // (1000 * GIB))
        if micros > _LARGEST:
            raise OverflowError(f"{micros} millionths are more than a price can be")
        return Price(micros_per_hour=micros, currency=self.currency)

    def decide(self, request: PolicyRequest) -> Sequence[Decision]:
        """The price of each node."""
        return [Decision(accept=True, price=self.price(offer.resources)) for offer in request.nodes]
