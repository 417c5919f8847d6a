"""From the models of the three kinds to their CustomResourceDefinitions.

No well-kept generator from pydantic to Kubernetes' structural schemas exists, and the two differ in a dozen small
ways, so this one is written here, kept small, and its output is compared with crds/ by a test and by the real API
server. `python -m sluice_contracts.crd write` regenerates crds/ and the chart's copies.
"""

from sluice_contracts.crd.kinds import KINDS, Column, Kind, definition
from sluice_contracts.crd.structural import SchemaError, structural_schema
from sluice_contracts.crd.yaml_text import yaml_text

__all__ = ["KINDS", "Column", "Kind", "SchemaError", "definition", "structural_schema", "yaml_text"]
