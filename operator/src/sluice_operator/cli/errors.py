"""Why a command could not do what was asked."""


class CliError(Exception):
    """One clear line for the person at the terminal: what was being done, what is wrong, what to do."""
