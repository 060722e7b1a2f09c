"""What commands ask of the user alike: the model, the machine, the lengths and what a plan is for."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from planner.graph.model import Model
from planner.hardware.load import load
from planner.hardware.overrides import apply
from planner.schema.hardware import HardwareProfile
from planner.schema.request import OBJECTIVES
from planner.sizes import parse_bytes, parse_nvme, parse_rate

_Command = TypeVar("_Command", bound=Callable[..., object])

_MODEL = click.option("--model", required=True, help="Short name, folder with config.json, or hub id.")
_MACHINE = click.option(
    "--hardware", required=True, help="Profile name, NxGPU such as 8xa100-80g, or a .toml file."
)
_MACHINES = click.option("--hardware", required=True, help="Profiles, with commas between them.")
_LENGTHS = (
    click.option(
        "--prompt", "prompt_tokens", type=int, default=128, show_default=True, help="Prompt tokens."
    ),
    click.option("--new-tokens", type=int, default=32, show_default=True, help="Tokens to generate."),
)
_OVERRIDES = (
    click.option("--gpus", "num_gpus", type=int, help="Use this many GPUs of the profile's kind."),
    click.option("--gpu-memory", help="Memory of each GPU, as in 12GiB."),
    click.option("--cpu-memory", help="Host memory, as in 64GiB."),
    click.option("--nvme", help="Local NVMe, as in 2TB@3GB/s."),
    click.option("--link", help="Host to GPU bandwidth from pinned memory, as in 12GB/s."),
)
_TRUST = click.option(
    "--trust-remote-code", is_flag=True, help="Import Python code that comes with the model."
)


def model_and_machine(command: _Command) -> _Command:
    """Add the options that choose a model, a machine and the lengths."""
    return _with(command, _MODEL, _MACHINE, *_LENGTHS, *_OVERRIDES, _TRUST)


def model_and_machines(command: _Command) -> _Command:
    """Add the options that choose a model, several machines as they are, and the lengths."""
    return _with(command, _MODEL, _MACHINES, *_LENGTHS, _TRUST)


def aims(objective: str) -> Callable[[_Command], _Command]:
    """Add the options that say what a plan is for; `objective` is what it is without them."""
    options = (
        click.option("--dtype", help="float16, bfloat16, float32 or any; the model's own by default."),
        click.option("--objective", type=click.Choice(OBJECTIVES), default=objective, show_default=True),
        click.option(
            "--batch",
            "batch_size",
            type=int,
            help="By default 1 for latency, else the smallest within 1 % of the most tokens a second.",
        ),
        click.option(
            "--max-latency", "max_latency_s", type=float, help="Limit on the whole call, in seconds."
        ),
    )
    return lambda command: _with(command, *options)


def _with(command: _Command, *options: Callable[[_Command], _Command]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def machine(
    hardware: str,
    *,
    num_gpus: int | None,
    gpu_memory: str | None,
    cpu_memory: str | None,
    nvme: str | None,
    link: str | None,
) -> HardwareProfile:
    """The profile with the command line's overrides."""
    return apply(
        load(hardware),
        num_gpus=num_gpus,
        gpu_memory_bytes=None if gpu_memory is None else parse_bytes(gpu_memory),
        cpu_memory_bytes=None if cpu_memory is None else parse_bytes(cpu_memory),
        nvme=None if nvme is None else parse_nvme(nvme),
        link_bytes_per_s=None if link is None else parse_rate(link),
    )


def traced_model(name: str, *, trust_remote_code: bool) -> tuple[Any, Model]:
    """The model's specification and the model with its graph."""
    from planner.tracing.load import load_model

    model = load_model(name, trust_remote_code=trust_remote_code)
    return model.known_spec, model
