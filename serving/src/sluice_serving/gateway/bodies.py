"""A request's JSON body as one of the gateway's own models."""

from typing import TypeVar

from pydantic import ValidationError
from sluice_contracts.base import Contract

from sluice_serving.gateway.errors import ApiError

Body = TypeVar("Body", bound=Contract)


def parsed(model: type[Body], raw: bytes) -> Body:
    """The body. Raises ApiError 400 that names the first wrong field, and quotes nothing of what was sent."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where or 'The body'}: {first['msg']}", param=where or None,
                       code="invalid_value") from None  # fmt: skip
