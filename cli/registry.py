"""Which commands there are. A new command is one module in `commands/` and one line here."""

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """Where a command is, and its one-line help, so that listing the commands imports none of them."""

    module: str
    summary: str


#: Command → module, relative to this package. The module's attribute `command` is the click command.
COMMANDS: Final = {
    "plan": Entry(
        ".commands.plan",
        "Choose placement, batch size and runtime for a model on a machine, with the reasons.",
    ),
    "predict": Entry(
        ".commands.predict",
        "Predict memory and time of a given device map or DeepSpeed configuration.",
    ),
    "verify": Entry(
        ".commands.verify",
        "Run a written plan, and compare its tokens and logits with those of the unmodified model.",
    ),
    "explain": Entry(
        ".commands.explain",
        "Explain a written plan: its placement, its bottleneck, and why the alternatives lost.",
    ),
    "compare": Entry(
        ".commands.compare",
        "Compare machines for one model: the best plan on each, and its price per million tokens.",
    ),
    "accuracy": Entry(
        ".commands.accuracy",
        "Compare the cost model with published measurements and with your own benchmark rows.",
    ),
    "probe": Entry(
        ".commands.probe",
        "Measure this machine in about a minute, and write a hardware profile for `--hardware`.",
    ),
    "bench": Entry(
        ".commands.bench",
        "Benchmark a written plan or a baseline, and show predicted next to measured values.",
    ),
    "calibrate": Entry(
        ".commands.calibrate",
        "Refit the efficiency terms of a hardware profile to benchmark rows of that machine.",
    ),
    "graph": Entry(
        ".commands.graph",
        "Show the modules, no-split blocks and costs of a model, or write its module graph to a file.",
    ),
    "roles": Entry(
        ".commands.roles", "Derive from a model's operations how its weights can be sharded over ranks."
    ),
    "hardware": Entry(".commands.hardware", "List the hardware profiles, or show one."),
    "models": Entry(".commands.models", "List the models known by name, or show one."),
}
