"""What one request cost, by its version's price. Pure."""

from sluice_contracts.routing import Price


def request_cost(
    price: Price | None, seconds: float | None, prompt_tokens: int | None, output_tokens: int | None
) -> float | None:
    """In the price's currency; None where there is no price, or nobody counted what it is for."""
    if price is None:
        return None
    parts = ((price.slot_second, seconds), (price.prompt_token, prompt_tokens), (price.output_token, output_tokens))
    if any(rate and amount is None for rate, amount in parts):
        return None
    return sum(rate * (amount or 0) for rate, amount in parts)
