"""Clusters as numbers: what GPUs and links can do, and how long a collective takes on them. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "exchange"]


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What one device can do; bytes and FLOPs per second are peaks."""

    memory: float
    """Bytes."""
    flops: float
    """Per second, dense matrix products in bf16."""
    flops_fp32: float
    """Per second, the same in fp32."""
    bandwidth: float
    """Bytes per second between the device and its memory."""
    link: float
    """Bytes per second to the other devices of its node, in each direction."""
    network: float
    """Bytes per second to other nodes, in each direction."""
    per_node: int = 8
    """Devices in a node."""
    reserved: float = 3e9
    """Bytes of memory that the driver, the libraries and communication take."""


GPUS: Mapping[str, GPU] = {
    "a100": GPU(memory=80e9, flops=312e12, flops_fp32=19.5e12, bandwidth=2.04e12, link=300e9, network=25e9),
    "h100": GPU(memory=80e9, flops=989e12, flops_fp32=67e12, bandwidth=3.35e12, link=450e9, network=50e9),
    "h200": GPU(memory=141e9, flops=989e12, flops_fp32=67e12, bandwidth=4.8e12, link=450e9, network=50e9),
    "b200": GPU(memory=180e9, flops=2250e12, flops_fp32=75e12, bandwidth=7.7e12, link=900e9, network=50e9),
    "cpu": GPU(
        memory=24e9, flops=3e11, flops_fp32=1e11, bandwidth=2e10, link=1e9, network=1e9, per_node=1, reserved=0.3e9
    ),
}
"""Data sheets of SXM boards in nodes of 8 with one network adapter a GPU; a "cpu" is two cores with bf16 units."""
UTILISATION = 0.4
"""Share of the peak FLOPs that training reaches, unless told otherwise."""
LINK_UTILISATION = 0.7
"""Share of the peak of links that collectives reach."""
HOP_SECONDS = 1e-6
"""From one device to the next in its node; a collective passes all of them."""
NODE_SECONDS = 5e-6
"""From one node to the next."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The devices of a run."""

    gpus: int = 1
    """How many, one rank each."""
    gpu: str = "h100"
    """Which, a name in GPUS."""
    replicas: int = 1
    """Whole copies of the model, each sharded over the ranks that are left (HSDP)."""
    utilisation: float = UTILISATION
    """Share of the peak FLOPs that training reaches."""
    price: float | None = None
    """Of one GPU for an hour, in any currency."""

    def __post_init__(self) -> None:
        for name in ("gpus", "replicas"):
            if getattr(self, name) < 1:
                raise ValueError(f"Cluster.{name} is {getattr(self, name)}; it must be at least 1")
        if self.gpu not in GPUS:
            raise ValueError(f"Cluster.gpu is {self.gpu!r}; known are {', '.join(GPUS)}")
        if self.gpus % self.replicas:
            raise ValueError(f"Cluster.replicas is {self.replicas}, which does not divide {self.gpus} gpus")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"Cluster.utilisation is {self.utilisation}; it must be above 0 and at most 1")
        if self.price is not None and not self.price >= 0:
            raise ValueError(f"Cluster.price is {self.price}; it must be at least 0")

    @property
    def device(self) -> GPU:
        """The row of GPUS."""
        return GPUS[self.gpu]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation, as the first rank sees it."""

    kind: Kind
    size: int
    """Bytes of the whole: what is gathered, or what is reduced."""
    ranks: int
    """In its group."""
    stride: int
    """From one rank of the group to the next."""

    @property
    def received(self) -> float:
        """Bytes that this rank receives, in a ring."""
        return (2 if self.kind == "all_reduce" else 1) * self.size * (self.ranks - 1) / self.ranks

    def seconds(self, device: GPU) -> float:
        """How long it takes on its own."""
        if self.ranks == 1:
            return 0.0
        together = min(self.ranks, max(1, device.per_node // self.stride))
        nodes = -(-self.ranks // together)
        # A ring enters each node once, by way of all adapters; pieces for everyone go by each rank's own.
        outside = device.network * (1 if self.kind == "exchange" else together)
        speed = device.link if nodes == 1 else min(device.link, outside)
        between = nodes if nodes > 1 else 0
        hops = NODE_SECONDS * between + HOP_SECONDS * (self.ranks - between)
        return self.received / (speed * LINK_UTILISATION) + (2 if self.kind == "all_reduce" else 1) * hops
