"""`sluice`: the command line for people: status, rollouts, lineage. Imports nothing of the operator's own loop."""


def main() -> None:
    """The entry point. Imported late, so that `import sluice_operator.cli` needs none of the command line's extras."""
    from sluice_operator.cli.app import run_app

    run_app()
