"""One name for clients, whatever an engine calls the version that answers. Pure.

Clients ask for the pool's model. An adapter answers under a name of its own, beside its base on the same engine: the
request is sent under that name, and answers come back under the one that was asked for.
"""

import json
import re

from sluice_contracts.routing import Backend


def for_engine(body: bytes, backend: Backend) -> bytes:
    """The request as `backend` takes it."""
    if backend.engine_model is None:
        return body
    request = json.loads(body) | {"model": backend.engine_model}
    return json.dumps(request, ensure_ascii=False).encode()


def for_client(answer: bytes, model: str, backend: Backend) -> bytes:
    """A whole answer, or one event of a stream, under the name that the client asked for. Within a JSON text quotes are
    escaped, so only the field itself can match."""
    if backend.engine_model is None:
        return answer
    field = re.compile(rb'"model":( ?)"' + re.escape(backend.engine_model.encode()) + b'"')
    return field.sub(rb'"model":\1"' + model.encode() + b'"', answer)
