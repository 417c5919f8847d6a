"""The edge agent: pulls, verifies and answers on a person's own machine."""
