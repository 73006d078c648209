"""Builds the C++ core: the row kernels once for each instruction set, the rest for any processor."""

import os
import platform
import sys
import sysconfig
from multiprocessing.pool import ThreadPool

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

HEADERS = [f"csrc/{name}.h" for name in ("host_device", "cell", "kernels", "parallel", "multigrid")]
# Not -ffast-math: at link time it would flush subnormal numbers in the whole process.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
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


class BuildExt(build_ext):
    """Compiles csrc/kernels.cpp once for each instruction set, and all units side by side."""

    def build_extension(self, ext):
        """Compile whatever is out of date, then let setuptools link."""
        units = [("csrc/kernels.cpp", name, march) for name, march in INSTRUCTION_SETS.items()]
        units += [(source, "", []) for source in ext.sources]

        def compile_unit(unit):
            source, name, march = unit
            folder = os.path.join(self.build_temp, name)
            objects = self.compiler.object_filenames([source], output_dir=folder)
            if self.force or newer_group([source, *HEADERS, "setup.py"], objects[0]):
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


core = Pybind11Extension(
    "elastofast._core",
    ["csrc/bindings.cpp", "csrc/multigrid.cpp", "csrc/dispatch.cpp"],
    depends=["csrc/bindings.cpp", "csrc/multigrid.cpp", "csrc/dispatch.cpp", "csrc/kernels.cpp", *HEADERS],
    cxx_std=17,
    define_macros=[
        ("EF_COMPILER", f'"{os.environ.get("CXX", sysconfig.get_config_var("CXX") or "c++")}"'),
        ("EF_FLAGS", f'"{" ".join(FLAGS + OPENMP)}"'),
    ],
    extra_compile_args=[*FLAGS, *OPENMP],
    extra_link_args=OPENMP,
)

if sys.platform == "win32":
    raise SystemExit("elastofast needs GCC or Clang with OpenMP; on Windows install it inside WSL")

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
