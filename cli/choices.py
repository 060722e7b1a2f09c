"""What commands ask of the user alike: the model, the machine, the lengths and what a plan is for."""

from collections.abc import Callable
from typing import TypeVar

import click

import planner
from planner.schema.hardware import HardwareProfile
from planner.schema.request import ANY_DTYPE, OBJECTIVES
from planner.sizes import parse_bytes, parse_nvme, parse_rate

from .completion import DTYPES, hardware_profiles, models, names_of, several_hardware_profiles

_Command = TypeVar("_Command", bound=Callable[..., object])

_MODEL = click.option(
    "--model",
    required=True,
    shell_complete=models,
    help="Short name (see `planner models list`), folder with a config.json, or hub id.",
)
_MACHINE = click.option(
    "--hardware",
    required=True,
    shell_complete=hardware_profiles,
    help="Profile name (see `planner hardware list`), a count such as 8xa100-80g, or a .toml file.",
)
_MACHINES = click.option(
    "--hardware",
    required=True,
    shell_complete=several_hardware_profiles,
    help="Profiles, counts or .toml files, separated by commas.",
)
_LENGTHS = (
    click.option(
        "--prompt", "prompt_tokens", type=int, default=128, show_default=True, help="Prompt length in tokens."
    ),
    click.option(
        "--new-tokens", type=int, default=32, show_default=True, help="Number of tokens to generate."
    ),
)
_OVERRIDES = (
    click.option("--gpus", "num_gpus", type=int, help="Number of GPUs, instead of the profile's."),
    click.option("--gpu-memory", help="Memory of each GPU, for example 12GiB."),
    click.option("--cpu-memory", help="Host memory, for example 64GiB."),
    click.option("--nvme", help="Local NVMe disk: capacity and read bandwidth, for example 2TB@3GB/s."),
    click.option("--link", help="Bandwidth from pinned host memory to a GPU, for example 12GB/s."),
)
_TRUST = click.option(
    "--trust-remote-code", is_flag=True, help="Allow Python code that comes with the model to run."
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
        click.option(
            "--dtype",
            shell_complete=names_of(*DTYPES, ANY_DTYPE),
            help="float16, bfloat16, float32, or any: the best one that fits.  [default: the model's]",
        ),
        click.option(
            "--objective",
            type=click.Choice(OBJECTIVES),
            default=objective,
            show_default=True,
            help="What to optimize: time of one call, tokens per second, or price per token.",
        ),
        click.option(
            "--batch",
            "batch_size",
            type=int,
            help="Batch size.  [default: 1 for latency; otherwise the smallest one within 1 % of the highest "
            "throughput]",
        ),
        click.option(
            "--max-latency",
            "max_latency_s",
            type=float,
            help="Longest allowed time of the whole call, in seconds.",
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
    return planner.load_hardware(
        hardware,
        num_gpus=num_gpus,
        gpu_memory_bytes=None if gpu_memory is None else parse_bytes(gpu_memory),
        cpu_memory_bytes=None if cpu_memory is None else parse_bytes(cpu_memory),
        nvme=None if nvme is None else parse_nvme(nvme),
        link_bytes_per_s=None if link is None else parse_rate(link),
    )
