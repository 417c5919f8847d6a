"""`python -m sluice_edge`."""

from sluice_edge.cli import main

main()
