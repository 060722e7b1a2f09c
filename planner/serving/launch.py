"""Commands that start a plan's ranks on several hosts. Pure."""

from collections.abc import Sequence
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError
from planner.schema.plan import Plan

HOSTFILE: Final = "hostfile"
_PORT: Final = 29500


def num_hosts(num_ranks: int, gpus_per_host: int) -> int:
    """Hosts that so many ranks need, every one with as many.

    Raises:
        InvalidInputError: the ranks cannot be shared out evenly.
    """
    hosts = -(-num_ranks // gpus_per_host)
    if num_ranks % hosts:
        raise InvalidInputError(
            f"{num_ranks} ranks cannot be shared out evenly over hosts of {gpus_per_host} GPUs; plan for "
            f"{hosts * gpus_per_host}"
        )
    return hosts


def hostfile(names: Sequence[str], slots: int) -> bytes:
    """DeepSpeed's list of hosts: a name and its number of GPUs on every line."""
    return "".join(f"{name} slots={slots}\n" for name in names).encode()


def deepspeed_line(first: str) -> str:
    """DeepSpeed's launcher, which logs in to the other hosts."""
    return (
        f"deepspeed --hostfile {HOSTFILE} --master_addr {first} --master_port {_PORT} generate.py CHECKPOINT"
    )


def torchrun_line(first: str, hosts: int, slots: int) -> str:
    """PyTorch's launcher, to be started on every host."""
    return (
        f"torchrun --nnodes {hosts} --nproc_per_node {slots} --rdzv_backend c10d --rdzv_id plan "
        f"--rdzv_endpoint {first}:{_PORT} generate.py CHECKPOINT"
    )


def across_hosts(emitted: Emitted, plan: Plan) -> Emitted:
    """The runtime's files with what starts them on several hosts, when the ranks are more than one has GPUs.

    Raises:
        InvalidInputError: the ranks cannot be shared out evenly.
    """
    hosts = num_hosts(plan.num_ranks, plan.hardware.host_gpus)
    if hosts == 1:
        return emitted
    slots = plan.num_ranks // hosts
    names = [f"host-{number}" for number in range(1, hosts + 1)]
    readme = f"""
The plan spans {hosts} hosts of {slots} GPUs. Put their names into `{HOSTFILE}` in place of `{names[0]}` to
`{names[-1]}`. This folder and CHECKPOINT must have the same paths on all of them. Then either start the ranks
from one host that can log in to the others by ssh without a password:

    {deepspeed_line(names[0])}

or start this on every host:

    {torchrun_line(names[0], hosts, slots)}
"""
    return Emitted(
        files={**emitted.files, HOSTFILE: hostfile(names, slots)},
        needs=emitted.needs,
        readme=f"{emitted.readme}\n{readme}",
    )
