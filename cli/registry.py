"""Which commands there are. A new command is one module in `commands/` and one line here."""

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """Where a command is, and its one-line help, so that listing the commands imports none of them."""

    module: str
    summary: str


#: Command → module, relative to this package. The module's attribute `command` is the click command.
COMMANDS: Final = {
    "plan": Entry(".commands.plan", "Plan a model onto a machine, and write the folder that runs it."),
    "predict": Entry(".commands.predict", "Say what a given device map would do on a machine."),
    "explain": Entry(".commands.explain", "Say what a written plan does, and why."),
    "graph": Entry(".commands.graph", "Show a model's modules, blocks and costs, or write them to a file."),
    "hardware": Entry(".commands.hardware", "List the hardware profiles, or show one."),
    "models": Entry(".commands.models", "List the models known by name, or show one."),
}
