"""The machine: what is here, which profile fits it and why, and what a run will cost before it starts."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .files import UserError
from .knobs import profile_names

GPU_PROFILES = ("a100", "t4")
# Batches are padded to a multiple of this: on a CPU each new shape in bf16 costs a compilation and the memory to keep it
# (700 steps of the twin: 2.6 GB and 5,400 tokens/s without, 0.9 GB and 7,900 with 16; 8 and 24 are as fast, 32 and 64 slower)
PAD_TO = 16


@dataclass(frozen=True)
class Hardware:
    """What the book knows of a machine: memory in GiB, compute capability as (major, minor)."""

    gpu: str
    gpu_memory: float
    capability: tuple
    cores: int
    memory: float

    @property
    def device(self):
        """Return "cuda" or "cpu"."""
        return "cuda" if self.gpu else "cpu"

    def __str__(self):
        cpu = f"{self.cores} CPU cores, {self.memory:.0f} GiB memory"
        return f"{self.gpu} ({self.gpu_memory:.0f} GiB), {cpu}" if self.gpu else f"no GPU, {cpu}"


def detect():
    """Return the Hardware of this machine; asks nvidia-smi, so that it is instant and needs no torch."""
    gpu, gpu_memory, capability = "", 0.0, (0, 0)
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
        if answer.returncode == 0 and answer.stdout.strip():
            gpu, mebibytes, compute = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
            gpu_memory, capability = float(mebibytes) / 1024, tuple(int(part) for part in compute.split("."))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Hardware(gpu, gpu_memory, capability, os.cpu_count() or 1, memory)


def has_bf16(hardware=None):
    """Return whether this machine multiplies bfloat16 fast: a GPU from SM 80 on, or a CPU with AVX-512 BF16 or AMX.

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    hardware = hardware or detect()
    if hardware.gpu:
        return hardware.capability >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text(encoding="utf-8").split()))


def pick_profile(name="auto", hardware=None):
    """Return (profile, why). "auto" picks from the hardware; a GPU profile without its GPU raises UserError at once."""
    hardware = hardware or detect()
    if name == "auto":
        if not hardware.gpu:
            return "tiny", "auto: no GPU here, so the CPU twin"
        if hardware.gpu_memory >= 38 and hardware.capability >= (8, 0):
            return "a100", f"auto: {hardware.gpu} has {hardware.gpu_memory:.0f} GiB and bf16 (SM 80 or newer)"
        return "t4", f"auto: {hardware.gpu} has {hardware.gpu_memory:.0f} GiB, so the 4-bit base (QLoRA)"
    if name not in profile_names():
        raise UserError(f"profile {name!r} is unknown; choose one of: auto, {', '.join(profile_names())}.")
    if name in GPU_PROFILES and not hardware.gpu:
        raise UserError(f"profile {name!r} needs an NVIDIA GPU and none was found on this machine; "
                        "use profile 'tiny' here, or open the notebook on Colab and choose a GPU runtime.")
    if name == "a100" and (hardware.gpu_memory < 38 or hardware.capability < (8, 0)):
        raise UserError(f"profile 'a100' needs 38 GiB of GPU memory and bf16; found {hardware}; use profile 't4'.")
    return name, "asked for"


def measure_flops(device):
    """Return the floating-point operations per second of a large matrix product on this device, measured for ~0.3 s."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    a @ a
    sync()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.3:
        a @ a
        sync()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - start)


def budget(knobs, parameters, trainable, train_tokens, sample_tokens, flops):
    """Return an estimate of memory (GiB) and time (minutes) for one experiment and seed.

    `parameters` and `trainable` are counts, the tokens are totals of one run. Training costs 2N forward, 2N backward
    through the frozen base, and 2N again with gradient checkpointing, per token; a third of the measured matrix speed
    is taken as reached in training, a fiftieth in sampling (which waits for memory, not arithmetic).
    """
    bytes_per_weight = {"float32": 4, "bfloat16": 2, "float16": 2}[knobs.dtype] if knobs.quantization == "none" else 0.56
    weights = parameters * bytes_per_weight
    adapter = trainable * 4 * 4  # float32 weight, gradient and two Adam moments
    per_token = 6 if knobs.gradient_checkpointing else 4
    minutes_train = per_token * parameters * train_tokens * knobs.num_epochs / (flops / 3) / 60
    minutes_sample = 2 * parameters * sample_tokens / (flops / 50) / 60
    return {"weights (GiB)": weights / 2**30, "adapter and optimiser (GiB)": adapter / 2**30,
            "training (minutes)": minutes_train, "sampling (minutes)": minutes_sample}
