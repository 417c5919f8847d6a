"""The publishing tests use the agent tests' repository and models: see ../edge_agent/world.py."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).parent.parent / "edge_agent" / "conftest.py"
_spec = importlib.util.spec_from_file_location("edge_fixtures", _PATH)
assert _spec is not None
assert _spec.loader is not None
_fixtures = sys.modules.setdefault("edge_fixtures", importlib.util.module_from_spec(_spec))
if not hasattr(_fixtures, "models"):
    _spec.loader.exec_module(_fixtures)

models = _fixtures.models
publisher = _fixtures.publisher
server = _fixtures.server
make_device = _fixtures.make_device
