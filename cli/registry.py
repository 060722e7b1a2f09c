"""Which commands there are. A new command is one module in `commands/` and one line here."""

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """Where a command is, and its one-line help, so that listing the commands imports none of them."""

    module: str
    summary: str


#: Command → module, relative to this package. The module's attribute `command` is the click command.
COMMANDS: Final = {
    "plan": Entry(
        ".commands.plan", "Plan MODEL onto HARDWARE: what lives where, at which batch size, and why."
    ),
    "predict": Entry(
        ".commands.predict",
        "Predict memory and time of MODEL on HARDWARE under a device map or a DeepSpeed configuration.",
    ),
    "verify": Entry(
        ".commands.verify", "Prove the plan in FOLDER by generating with it and with the plain model."
    ),
    "explain": Entry(
        ".commands.explain",
        "Say what is where in the plan in FOLDER and why, what bounds it, and what lost by how much.",
    ),
    "compare": Entry(
        ".commands.compare",
        "Compare machines for MODEL: the best plan on each, and what a million tokens cost there.",
    ),
    "accuracy": Entry(
        ".commands.accuracy",
        "Hold the cost model against published measurements and rows of your own, row by row.",
    ),
    "probe": Entry(
        ".commands.probe",
        "Measure this machine, in about a minute, and write it as a profile for `--hardware`.",
    ),
    "bench": Entry(
        ".commands.bench",
        "Benchmark the plan in FOLDER, or a baseline, at several batch sizes, predicted beside measured.",
    ),
    "calibrate": Entry(
        ".commands.calibrate", "Refit a few efficiency terms of PROFILE to rows measured on its machine."
    ),
    "graph": Entry(".commands.graph", "Show a model's modules, blocks and costs, or write them to a file."),
    "roles": Entry(
        ".commands.roles", "Show how a model's weights may be cut over ranks, derived from its operations."
    ),
    "hardware": Entry(".commands.hardware", "List the hardware profiles, or show one."),
    "models": Entry(".commands.models", "List the models known by name, or show one."),
}
