"""Automatic image colorization: the library behind the pipeline.

What NumPy and OpenMP read when they are loaded is set here, before either is; what stands in the environment is kept.
"""

import os
from pathlib import Path

# A thread that waits sleeps: one that spins takes the core from the thread that it waits for whenever another process runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# AVX-512 rounds otherwise than AVX2, which every x86-64 processor of the last ten years has (device.py does the rest).
_cpuinfo = Path("/proc/cpuinfo")
if _cpuinfo.exists() and "avx512f" in _cpuinfo.read_text():
    os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
