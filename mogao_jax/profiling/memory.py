"""Memory: of the process, of the device, and what the compiled step says it needs."""

from __future__ import annotations

import resource
import sys
from typing import Any

import jax


def memory(compiled: Any) -> dict[str, float]:
    """Bytes, by what they are; what the platform does not tell is left out.

    Args:
      compiled: the compiled training step.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    use = {"process peak": float(peak * (1 if sys.platform == "darwin" else 1024))}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        use["device peak"] = float(stats["peak_bytes_in_use"])
    analysis = compiled.memory_analysis()
    for name, field in (
        ("step arguments", "argument_size_in_bytes"),
        ("step temporaries", "temp_size_in_bytes"),
    ):
        value = getattr(analysis, field, None)
        if value is not None:
            use[name] = float(value)
    return use
