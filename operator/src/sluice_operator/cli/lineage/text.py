"""A chain as a person reads it: one line a link. Pure."""

from rich.text import Text

from sluice_operator.cli.lineage.chain import Chain, Link, LinkState
from sluice_operator.cli.text import aligned

MARKS = {
    LinkState.OK: ("✓", "green"),
    LinkState.STOPPED: ("!", "yellow"),
    LinkState.ABSENT: ("·", "dim"),
    LinkState.BROKEN: ("✗", "bold red"),
}


def render(chain: Chain) -> list[Text]:
    """The chain's lines: who, under which id, from whom; a line a link; what it comes to."""
    lines = [
        Text.assemble((chain.name, "bold"), f"  a version of {chain.model} in namespace {chain.namespace}"),
        Text.assemble("lineage  ", (chain.lineage or "none yet", "bold cyan")),
    ]
    if chain.parent is not None:
        name = chain.parent.version or "no longer here"
        lines.append(Text.assemble("parent   ", (chain.parent.lineage, "cyan"), f"  ({name})"))
    lines.append(Text())
    lines += aligned([_row(link) for link in chain.links], indent=1)
    lines += [Text(), _conclusion(chain)]
    return lines


def _row(link: Link) -> list[Text | str]:
    mark, style = MARKS[link.state]
    text = Text(link.text, style="red" if link.state is LinkState.BROKEN else "")
    if link.check:
        text.append(f"  ({link.check})", style="dim")
    return [Text(mark, style=style), Text(link.kind, style="bold"), link.name, text]


def _conclusion(chain: Chain) -> Text:
    if chain.lineage is None:
        return Text("No lineage id yet: it is given when the run has read its dataset and base.", style="yellow")
    if chain.broken:
        kinds = ", ".join(dict.fromkeys(link.kind for link in chain.broken))
        return Text(f"The chain is broken at: {kinds}.", style="bold red")
    there = sum(link.state is not LinkState.ABSENT for link in chain.links)
    missing = [link.kind for link in chain.links if link.state is LinkState.ABSENT]
    tail = f"; none for: {', '.join(missing)}" if missing else ""
    return Text(f"One lineage id joins {there} of {len(chain.links)} links{tail}.", style="green")
