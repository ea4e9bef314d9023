"""Memory: of the process, of the device, and what the compiled step says it needs."""

from __future__ import annotations

from typing import Any

import jax

from mogao_jax.process_memory import peak_bytes


def memory(compiled: Any) -> dict[str, float]:
    """Bytes, by what they are; what the platform does not tell is left out.

    Args:
      compiled: the compiled training step.
    """
    use = {"process peak": float(peak_bytes())}
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
