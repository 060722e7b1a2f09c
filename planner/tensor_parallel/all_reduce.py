"""Time of NCCL's collectives within one machine, by the formulas of NCCL's own tuning model.

For every protocol NCCL adds a base latency, a latency per step of the ring, and the bytes over the protocol's
share of the bus bandwidth, and runs the fastest. Source: nccl/src/graph/tuning.cc (2.18): `baseLat`, `hwLat`,
`llMaxBws` and the ratios in `ncclTopoTuneModel`; a ring's all-reduce takes 2·(n - 1) steps and sends
2·(n - 1)/n of the bytes over every link, a gather half of both.
"""

from dataclasses import dataclass
from typing import Final

from planner.schema.hardware import Fabric


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One of NCCL's transfer protocols.

    Attributes:
        base_s: latency of any collective.
        step_s: latency of one step of the ring, by kind of link (`nvlink`, `pcie`).
        share: fraction of the bus bandwidth that it reaches.
        most_bytes_per_s: bus bandwidth that it never exceeds, or None.
    """

    base_s: float
    step_s: dict[str, float]
    share: float
    most_bytes_per_s: float | None = None


#: LL sends a flag with every 4 bytes, LL128 with every 120; LL128 needs NVLink.
PROTOCOLS: Final = (
    Protocol(base_s=6.6e-6, step_s={"nvlink": 0.6e-6, "pcie": 1.0e-6}, share=0.25, most_bytes_per_s=87.7e9),
    Protocol(base_s=14.0e-6, step_s={"nvlink": 1.9e-6}, share=0.92),
    Protocol(base_s=8.4e-6, step_s={"nvlink": 3.4e-6, "pcie": 5.7e-6}, share=1.0),
)

#: Device memory of one channel's connection to one peer: 4 MiB of Simple, 4.7 of LL128, 0.5 of LL buffers.
#: Source: nccl/src/include/device.h (NCCL_BUFFSIZE and the LL sizes), 2.18.
_CONNECTION_BYTES: Final = round(9.2 * 2**20)
#: Connections that a rank receives on, in every channel: the ring's, and up and down the tree.
_CONNECTIONS: Final = 3
#: Channels that NCCL opens: as many as its links can feed.
_CHANNELS: Final = {"nvlink": 24, "pcie": 4}


def communicator_bytes(num_ranks: int, fabric: Fabric) -> int:
    """Bytes that NCCL allocates on every GPU for one group of ranks; 0 for a single rank."""
    return _CHANNELS[fabric.kind] * _CONNECTIONS * _CONNECTION_BYTES if num_ranks > 1 else 0


def all_reduce_s(num_bytes: float, num_ranks: int, fabric: Fabric) -> float:
    """Seconds of an all-reduce.

    Args:
        num_bytes: size of the tensor that every rank contributes and receives.
        num_ranks: ranks in the group; a single one takes no time.
        fabric: what connects the GPUs.
    """
    return _ring_s(num_bytes, num_ranks, fabric, passes=2)


def all_gather_s(num_bytes: float, num_ranks: int, fabric: Fabric) -> float:
    """Seconds of an all-gather.

    Args:
        num_bytes: size of the gathered tensor, of which every rank contributes an equal part.
        num_ranks: ranks in the group; a single one takes no time.
        fabric: what connects the GPUs.
    """
    return _ring_s(num_bytes, num_ranks, fabric, passes=1)


def _ring_s(num_bytes: float, num_ranks: int, fabric: Fabric, *, passes: int) -> float:
    if num_ranks < 2:
        return 0.0
    steps = passes * (num_ranks - 1)
    sent = num_bytes * steps / num_ranks
    return min(
        protocol.base_s + steps * protocol.step_s[fabric.kind] + sent / _bus_bytes_per_s(protocol, fabric)
        for protocol in PROTOCOLS
        if fabric.kind in protocol.step_s
    )


def _bus_bytes_per_s(protocol: Protocol, fabric: Fabric) -> float:
    reached = fabric.bus_bytes_per_s.value * protocol.share
    return reached if protocol.most_bytes_per_s is None else min(reached, protocol.most_bytes_per_s)
