"""Builds the C++ core: the row kernels once for each instruction set, the rest for any processor; and the CUDA kernels
where nvcc is there.

ELASTOFAST_CUDA=0 leaves CUDA out, 1 asks for it (no nvcc is then an error), auto (default) takes it where it is.
ELASTOFAST_CUDA_ARCH lists compute capabilities, default "80;90"; the last one's PTX serves newer devices.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from multiprocessing.pool import ThreadPool

import pybind11
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

SHARED = glob("csrc/*.h")
CPU, GPU = (SHARED + glob(f"csrc/{folder}/*.h") for folder in ("cpu", "gpu"))
# Not -ffast-math: at link time it would flush subnormal numbers in the whole process.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
# Python is built with -fwrapv, and its flags come first: GCC then leaves loops over int half vectorised.
FLAGS += ["-fno-wrapv"]
FLAGS += ["-Wno-psabi"]  # GCC notes on vector arguments, which are always inlined here
OPENMP = ["-fopenmp"]
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS = {
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "v3": ["-march=x86-64-v3"],
        "v2": ["-march=x86-64-v2"],
    }
else:
    INSTRUCTION_SETS = {"baseline": []}


KERNELS = ["csrc/cpu/kernels.cpp", "csrc/cpu/volume_kernels.cpp"]


class BuildExt(build_ext):
    """Compiles the kernels once for each instruction set and .cu files by nvcc, all units side by side."""

    def build_extension(self, ext):
        """Compile whatever is out of date, then let setuptools link."""
        units = [(source, "", []) for source in ext.sources]
        if ext is core:
            units = [(source, name, march) for name, march in INSTRUCTION_SETS.items() for source in KERNELS] + units

        def compile_unit(unit):
            source, name, march = unit
            folder = os.path.join(self.build_temp, name)
            if source.endswith(".cu"):
                return self.compile_cuda(ext, source, folder)
            objects = self.compiler.object_filenames([source], output_dir=folder)
            if self.force or newer_group([source, *ext.depends], objects[0]):
                self.compiler.compile(
                    [source],
                    output_dir=folder,
                    macros=[("EF_ISA", name), *ext.define_macros],
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*ext.extra_compile_args, *march],
                )
            return objects[0]

        with ThreadPool() as pool:  # the longest first, since a build waits for the last
            ext.extra_objects = pool.map(compile_unit, units, chunksize=1)
        ext.sources = []
        super().build_extension(ext)

    def compile_cuda(self, ext, source, folder):
        """Compile a .cu file if it is out of date."""
        target = os.path.join(folder, source.removesuffix(".cu") + ".o")
        if self.force or newer_group([source, *ext.depends], target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            includes = [f"-I{path}" for path in (*ext.include_dirs, *self.include_dirs)]
            macros = [f"-D{name}={value}" for name, value in ext.define_macros]
            self.spawn([*ext.nvcc, *includes, *macros, "-c", source, "-o", target])
        return target


def extension(name, sources, headers, **options):
    depends = [*sources, *headers, "setup.py"]
    return Pybind11Extension(f"elastofast.{name}", sources, depends=depends, cxx_std=17, **options)


def cuda_extension():
    """`elastofast._cuda`, or None where it is not wanted or there is no nvcc."""
    wish = os.environ.get("ELASTOFAST_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"ELASTOFAST_CUDA must be auto, 0 or 1, got {wish!r}")
    nvcc = shutil.which("nvcc")
    if wish == "0" or (nvcc is None and wish == "auto"):
        return None
    if nvcc is None:
        raise SystemExit("ELASTOFAST_CUDA=1 needs nvcc on PATH, and there is none")
    asked = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", asked.stdout)
    if release is None or (int(release[1]), int(release[2])) < (11, 8):  # sm_90, __grid_constant__
        problem = f"{nvcc} must be of CUDA 11.8 or later, it says {release[0] if release else asked.stderr.strip()!r}"
        if wish == "1":
            raise SystemExit(problem)
        print(f"no CUDA kernels are built: {problem}", file=sys.stderr)
        return None
    # nvcc may be a shim elsewhere, so it is asked where its toolkit is
    dryrun = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"TOP=(.*)", dryrun.stdout + dryrun.stderr)
    if top is None:
        raise SystemExit(f"{nvcc} does not say where its toolkit is (no TOP= in nvcc --dryrun)")
    top = top[1].strip()
    libraries = [path for lib in ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib")
                 if os.path.exists(os.path.join(path := os.path.join(top, lib), "libcudart_static.a"))]  # fmt: skip
    architectures = re.findall(r"\d+[a-z]?", os.environ.get("ELASTOFAST_CUDA_ARCH", "80;90"))
    if not architectures:
        raise SystemExit("ELASTOFAST_CUDA_ARCH must list compute capabilities such as '80;90'")
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    code += [f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]
    flags = ["-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden", *code]
    names = ", ".join(f"sm_{a}" for a in architectures) + f", PTX {architectures[-1]}"
    cuda = extension(
        "_cuda",
        ["csrc/gpu/module.cu"],
        GPU,
        define_macros=[("EF_CUDA_ARCH", f'"{names}"')],
        include_dirs=[pybind11.get_include()],
        library_dirs=libraries,
        libraries=["cudart_static", "rt", "dl", "pthread"],
    )
    cuda.nvcc = [nvcc, *flags]
    return cuda


core = extension(
    "_core",
    ["csrc/cpu/module.cpp", "csrc/cpu/planar.cpp", "csrc/cpu/volume.cpp", "csrc/cpu/dispatch.cpp"],
    [*KERNELS, *CPU],
    define_macros=[
        ("EF_COMPILER", f'"{os.environ.get("CXX", sysconfig.get_config_var("CXX") or "c++")}"'),
        ("EF_FLAGS", f'"{" ".join(FLAGS + OPENMP)}"'),
    ],
    extra_compile_args=[*FLAGS, *OPENMP],
    extra_link_args=OPENMP,
)

if sys.platform == "win32":
    raise SystemExit("elastofast needs GCC or Clang with OpenMP; on Windows install it inside WSL")

modules = [core, cuda_extension()]
setup(ext_modules=[m for m in modules if m], cmdclass={"build_ext": BuildExt})
