"""Published figures of accelerators, per chip.

Sources: Google Cloud's TPU system architecture pages (v4, v5e, v5p, v6e, Ironwood) and NVIDIA's
data sheets of the SXM parts. Dense bf16, without sparsity.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as in a topology's name.
      platform: as JAX calls it.
      flops: bf16 FLOP/s at peak.
      memory: bytes of HBM that the specification gives.
      bandwidth: bytes/s of HBM.
      link_bandwidth: bytes/s of all links inside a slice or node together, one way (ICI, NVLink).
      network_bandwidth: bytes/s per chip between slices or nodes (data-centre network), one way;
        an assumption of the estimate, since it depends on the installation.
    """

    name: str
    platform: str
    flops: float
    memory: float
    bandwidth: float
    link_bandwidth: float
    network_bandwidth: float


_GIB = 2.0**30
_GBIT = 1e9 / 8

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * _GIB, 1228e9, 2400 * _GBIT / 2, 6.25e9),
        Chip("v5e", "tpu", 197e12, 16 * _GIB, 819e9, 1600 * _GBIT / 2, 3.1e9),
        Chip("v5p", "tpu", 459e12, 95 * _GIB, 2765e9, 4800 * _GBIT / 2, 6.25e9),
        Chip("v6e", "tpu", 918e12, 32 * _GIB, 1640e9, 3584 * _GBIT / 2, 12.5e9),
        Chip("tpu7x", "tpu", 2307e12, 192 * _GIB, 7380e9, 9600 * _GBIT / 2, 12.5e9),
        Chip("H100", "gpu", 989e12, 80e9, 3350e9, 450e9, 50e9),
        Chip("H200", "gpu", 989e12, 141e9, 4800e9, 450e9, 50e9),
    )
}
