"""What this machine is, and what its latencies can say."""

import platform
from pathlib import Path

NO_PHONE = "A computer's latency is not a phone's, and another file may be the faster one there."

# What XNNPACK's kernels ask a processor for, in the words of /proc/cpuinfo; from the oldest to the newest.
_SIMD = (
    *("sse2", "ssse3", "sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512vbmi"),
    *("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "rvv"),
)


def host_device() -> str:
    """The device's name in records: `host (AMD EPYC 7B13)`."""
    name = _cpuinfo_line("model name")
    return f"host ({name or platform.processor() or platform.machine() or 'unknown processor'})"


def simd_features(cpuinfo: str | None = None) -> tuple[str, ...]:
    """The vector instructions of this processor that matter to kernels, in the kernel's own words.

    Without `avx512_vnni`, `avx_vnni` or `asimddp` int8 is slow; with `avx` XNNPACK skips no zeros.

    Args:
        cpuinfo: what to read in the place of this machine's `/proc/cpuinfo`.

    Returns:
        Names from the oldest instructions to the newest; empty where the system does not say.

    Example:
        >>> simd_features("flags : fpu sse2 avx2")
        ('sse2', 'avx2')
    """
    words = set((_cpuinfo_line("flags", cpuinfo) or _cpuinfo_line("features", cpuinfo)).split())
    return tuple(name for name in _SIMD if name in words)


def _cpuinfo_line(key: str, cpuinfo: str | None = None) -> str:
    """The value of the first line of that key, whatever its capitals; empty if there is none."""
    if cpuinfo is None:
        information = Path("/proc/cpuinfo")
        cpuinfo = information.read_text(errors="replace") if information.exists() else ""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == key:
            return value.strip()
    return ""
