"""Compile every kernel ahead of time for named GPUs, without one: `python -m
plantlib.kernels.compile --arch 80 90`.

What the interpreter cannot show shows here: code the compiler refuses, tiles that outgrow shared
memory, registers that spill. It says nothing of speed. Not to be run with TRITON_INTERPRET=1, which
replaces the compiler.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from plantlib.kernels import machine

# KiB a block may use, by compute capability (CUDA C++ guide)
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}


def specs() -> list[tuple]:
    """(name, kernel, signature, constants, warps, stages) of every kernel of the package."""
    from plantlib.kernels import cooccurrence, label_attention, listwise

    return [
        s
        for module in (label_attention, listwise, cooccurrence)
        for s in module.ahead_of_time_specs()
    ]


def compile_one(spec: tuple, arch: int) -> dict:
    """Compile one kernel for `arch`, e.g. 90: name, shared memory in KiB, registers a thread, bytes
    spilled.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    label, kernel, signature, constants, warps, stages = spec
    # what the launcher finds out at run time: aligned memory and a width of whole vectors, without
    # which loads do not pipeline
    aligned = [n.startswith("*") or name == "D" for name, n in signature.items()]
    attributes = {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(aligned) if yes}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    return {"kernel": label, "arch": arch, "shared_kib": made.metadata.shared / 1024} | _registers(
        made.asm["ptx"], arch
    )


def _registers(ptx: str, arch: int) -> dict:
    """Registers and spills, by the assembler that comes with Triton."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (source := Path(folder, "kernel.ptx")).write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx)[1]
        command = [ptxas, "-v", f"--gpu-name={target}", source, "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", said)))
    return {"registers": int(re.search(r"Used (\d+) registers", said)[1]), "spilled_bytes": spilled}


def main(arguments=None) -> int:
    """Print a line a kernel; 1 when one does not fit its GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        default=[80, 90],
        choices=sorted(SHARED),
        help="compute capabilities",
    )
    parser.add_argument("--only", default="", help="kernels whose name holds this")
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
