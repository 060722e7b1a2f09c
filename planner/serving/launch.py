"""Commands that start a plan's ranks on several hosts. Pure."""

from collections.abc import Sequence
from typing import Final

from planner.cost.runtime_model import Emitted
from planner.errors import InvalidInputError
from planner.schema.plan import Plan

HOSTFILE: Final = "hostfile"
_PORT: Final = 29500


def num_hosts(num_ranks: int, gpus_per_host: int) -> int:
    """Hosts that `num_ranks` ranks need, each with the same number of ranks.

    Raises:
        InvalidInputError: the ranks cannot be distributed evenly.
    """
    hosts = -(-num_ranks // gpus_per_host)
    if num_ranks % hosts:
        raise InvalidInputError(
            f"{num_ranks} ranks cannot be distributed evenly over hosts of {gpus_per_host} GPUs; plan for "
            f"{hosts * gpus_per_host} ranks"
        )
    return hosts


def hostfile(names: Sequence[str], slots: int) -> bytes:
    """DeepSpeed's list of hosts: one line for each of `names`, with `slots` GPUs."""
    return "".join(f"{name} slots={slots}\n" for name in names).encode()


def deepspeed_line(first: str) -> str:
    """The command of DeepSpeed's launcher, to be started on the host `first`; it logs in to the others."""
    return (
        f"deepspeed --hostfile {HOSTFILE} --master_addr {first} --master_port {_PORT} generate.py CHECKPOINT"
    )


def torchrun_line(first: str, hosts: int, slots: int) -> str:
    """The command of PyTorch's launcher, to be started on every host.

    Args:
        first: name of the first host, where the ranks meet.
        hosts: number of hosts.
        slots: ranks on each host.
    """
    return (
        f"torchrun --nnodes {hosts} --nproc_per_node {slots} --rdzv_backend c10d --rdzv_id plan "
        f"--rdzv_endpoint {first}:{_PORT} generate.py CHECKPOINT"
    )


def across_hosts(emitted: Emitted, plan: Plan) -> Emitted:
    """The runtime's files with a host file and commands for several hosts, when one host has too few GPUs.

    Raises:
        InvalidInputError: the ranks cannot be distributed evenly.
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
