"""Compile every kernel for named GPUs without having one.

`python -m plantlib.kernels.compile --arch 80 90` finds what the interpreter cannot: code that the
compiler refuses, tiles that outgrow shared memory, registers that spill. It says nothing about
speed, and it needs TRITON_INTERPRET unset, which would replace the compiler.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from plantlib.kernels import machine

# KiB of shared memory per block, by compute capability (CUDA C++ guide)
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}


def specs() -> list[tuple]:
    """(name, kernel, signature, constants, warps, stages) of every kernel of the package."""
    from plantlib.kernels import cooccurrence, label_attention, listwise

    modules = (label_attention, listwise, cooccurrence)
    return [spec for module in modules for spec in module.ahead_of_time_specs()]


def compile_one(spec: tuple, arch: int) -> dict:
    """Compile one kernel for a compute capability, e.g. 90.

    Returns:
        Its name, shared memory in KiB, registers per thread, bytes spilled.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    label, kernel, signature, constants, warps, stages = spec
    # what the launcher finds out at run time: aligned memory and a D of whole vectors; without it
    # loads are not pipelined
    aligned = [n.startswith("*") or name == "D" for name, n in signature.items()]
    attributes = {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(aligned) if yes}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    row = {"kernel": label, "arch": arch, "shared_kib": compiled.metadata.shared / 1024}
    return row | _registers(compiled.asm["ptx"])


def _registers(ptx: str) -> dict:
    """Registers and spills, as the assembler that comes with Triton reports them."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (source := Path(folder, "kernel.ptx")).write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx)[1]
        command = [ptxas, "-v", f"--gpu-name={target}", source, "-o", f"{folder}/kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", report)))
    return {"registers": registers, "spilled_bytes": spilled}


def main(arguments=None) -> int:
    """Print one line per kernel; the exit status is 1 if a kernel does not fit its GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arch = {"type": int, "nargs": "+", "default": [80, 90], "choices": sorted(SHARED)}
    parser.add_argument("--arch", **arch, help="compute capabilities")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    options = parser.parse_args(arguments)
    if machine.interpreted():
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")
    failed = False
    for arch in options.arch:
        for spec in (s for s in specs() if options.only in s[0]):
            row = compile_one(spec, arch)
            fits = row["shared_kib"] <= SHARED[arch]
            failed |= not fits
            print(
                f"sm_{arch} {row['kernel']:40} {row['shared_kib']:6.0f} KiB shared"
                f" {row['registers']:4} registers {row['spilled_bytes']:6} bytes"
                f" spilled{'' if fits else '  DOES NOT FIT'}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
