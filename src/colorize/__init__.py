"""Automatic image colorization: the library behind the pipeline.

NumPy and OpenMP read these variables when they are loaded, so they are set here first. Values that are
already set in the environment are kept.
"""

import os
from pathlib import Path

# Waiting threads sleep. Spinning ones would take a core from the threads that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# AVX-512 rounds differently from AVX2, which every recent x86-64 processor has (see training/device.py).
_cpuinfo = Path("/proc/cpuinfo")
if _cpuinfo.exists() and "avx512f" in _cpuinfo.read_text():
    os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
