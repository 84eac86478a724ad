"""Small studies for a ledger, and what is asked of it in many tests."""

from pipeline.store.ledger import Claim, Ledger, Order, Outcome, Output, Unit

LONG = 1000.0


def works(count: int, fingerprint: str = "f") -> list[Unit]:
    return [Unit(f"study:{number}", number, fingerprint, b"[%d]" % number) for number in range(count)]


def outcome(claim: Claim, rank: int = 0, probability: float = 0.5) -> Outcome:
    return Outcome(claim.id, b'{"of":"%s"}' % claim.key.encode(), rank, probability, (Output("a.png", "0" * 64, 3),))


def keys(ledger: Ledger, order: Order = Order.POSITION) -> list[str]:
    return [stored.key for stored in ledger.outcomes(order)]
