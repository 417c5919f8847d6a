"""Whether a model file works on this device: it loads, and a known prompt gets an answer."""

from sluice_edge.engine.child import Engine, EngineSettings
from sluice_edge.errors import EngineError, UnhealthyError

KNOWN_PROMPT = "Hello! Please answer with one short sentence."
ANSWER_SECONDS = 120.0


def check(settings: EngineSettings) -> None:
    """Start the engine on the file and ask it. Raises UnhealthyError with the reason."""
    try:
        with Engine(settings) as engine:
            answer = engine.chat([{"role": "user", "content": KNOWN_PROMPT}], max_tokens=24, seconds=ANSWER_SECONDS)
    except EngineError as error:
        raise UnhealthyError(str(error)) from error
    choices = answer.get("choices") or [{}]
    text = (choices[0].get("message") or {}).get("content") or ""
    if not text.strip():
        raise UnhealthyError("it loads, but answers a known prompt with nothing")
