"""The instructions of `interpreted`, in C++, and the small library made of them once a machine.

An instruction reads up to three operands x, y, z and writes d = f(x, y, z), over three nested loops with a stride of
its own for each; a stride of 0 repeats a value. Reductions and sums into a place add to d, or take the larger.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ppgen.engine.compiling import native
from ppgen.engine.compiling.compile import compiler

C_TYPES = {torch.float64: "double", torch.float32: "float"}
SECONDS, SECONDS_A_NODE = 2.0, 1.5e-4  # of the compiler, once a machine and dtype; to write a graph's instructions
INTEGERS = 24  # of an instruction: operation, three lengths; of d, x, y, z a base, an offset, three strides

UNARY = {
    "copy": "x", "neg": "-x", "abs": "std::fabs(x)", "exp": "std::exp(x)", "log": "std::log(x)",
    "log1p": "std::log1p(x)", "expm1": "std::expm1(x)", "sqrt": "std::sqrt(x)", "rsqrt": "1 / std::sqrt(x)",
    "reciprocal": "1 / x", "sigmoid": "1 / (1 + std::exp(-x))", "tanh": "std::tanh(x)", "sin": "std::sin(x)",
    "cos": "std::cos(x)", "tan": "std::tan(x)", "atan": "std::atan(x)", "erf": "std::erf(x)",
    "lgamma": "std::lgamma(x)", "square": "x * x", "relu": "x < 0 ? 0 : x", "sign": "T(x > 0) - T(x < 0)",
    "isnan": "x != x", "logical_not": "x == 0", "softplus": "x > 20 ? x : std::log1p(std::exp(x))",
}  # fmt: skip
BINARY = {
    "add": "x + y", "sub": "x - y", "mul": "x * y", "div": "x / y", "pow": "std::pow(x, y)",
    "maximum": "x != x || x > y ? x : y", "minimum": "x != x || x < y ? x : y", "atan2": "std::atan2(x, y)",
    "eq": "x == y", "ne": "x != y", "lt": "x < y", "le": "x <= y", "gt": "x > y", "ge": "x >= y",
    "logical_and": "x != 0 && y != 0", "logical_or": "x != 0 || y != 0", "logical_xor": "(x != 0) != (y != 0)",
    "sigmoid_backward": "x * (1 - y) * y", "tanh_backward": "x * (1 - y * y)",
    "softplus_backward": "y > 20 ? x : x * std::exp(y) / (std::exp(y) + 1)",
}  # fmt: skip
TERNARY = {"where": "x != 0 ? y : z", "threshold_backward": "y <= z ? 0 : x", "axpy": "x + y * z"}
INTO = {"add_to": "d + x", "max_to": "x != x || x > d ? x : d", "min_to": "x != x || x < d ? x : d"}
SLOW = {"exp", "log", "log1p", "expm1", "sigmoid", "tanh", "sin", "cos", "tan", "atan", "erf", "lgamma", "softplus",
        "pow", "atan2", "softplus_backward"}  # fmt: skip
CODES = {name: i for i, name in enumerate([*UNARY, *BINARY, *TERNARY, *INTO])}

_HEAD = """
#include <cmath>
#include <cstdint>
struct Operand { int32_t base, offset, s[3]; };
struct Instruction { int32_t code, n[3]; Operand o[4]; };
#define OUTER for (int32_t i = 0; i < n0; i++) for (int32_t j = 0; j < n1; j++) { \\
  T* d = D + i * o[0].s[0] + j * o[0].s[1]; \\
  const T *a = A + i * o[1].s[0] + j * o[1].s[1], *b = B + i * o[2].s[0] + j * o[2].s[1], \\
    *c = C + i * o[3].s[0] + j * o[3].s[1]; (void)b; (void)c;
#define INNER(X, Y, Z, W, E) _Pragma("GCC ivdep") for (int32_t k = 0; k < n2; k++) { \\
  const T x = a[X], y = b[Y], z = c[Z]; (void)y; (void)z; d[W] = E; }
#define UNARY(E) OUTER if (u == 1 && v == 1) INNER(k, 0, 0, k, E) else INNER(k * v, 0, 0, k * u, E) } break;
#define BINARY(E) OUTER if (u == 1 && v == 1 && w == 1) INNER(k, k, 0, k, E) \\
  else if (u == 1 && v == 1 && w == 0) INNER(k, 0, 0, k, E) else if (u == 1 && v == 0 && w == 1) INNER(0, k, 0, k, E) \\
  else INNER(k * v, k * w, 0, k * u, E) } break;
#define TERNARY(E) OUTER INNER(k * v, k * w, k * q, k * u, E) } break;
#define INTO(E) OUTER if (u == 1 && v == 1) _Pragma("GCC ivdep") for (int32_t k = 0; k < n2; k++) { \\
    const T x = a[k]; T& t = d[k]; { const T d = t; t = E; } } \\
  else if (u == 0) { S t = *d; for (int32_t k = 0; k < n2; k++) { const S x = a[k * v], d = t; t = E; } *d = T(t); } \\
  else for (int32_t k = 0; k < n2; k++) { const T x = a[k * v]; T& t = d[k * u]; { const T d = t; t = E; } } } break;
typedef double S;
extern "C" void run(const Instruction* code, int64_t count, T** base) {
  for (const Instruction* at = code; at < code + count; at++) {
    const Operand* o = at->o;
    const int32_t n0 = at->n[0], n1 = at->n[1], n2 = at->n[2];
    const int32_t u = o[0].s[2], v = o[1].s[2], w = o[2].s[2], q = o[3].s[2]; (void)q;
    T* D = base[o[0].base] + o[0].offset;
    const T *A = base[o[1].base] + o[1].offset, *B = base[o[2].base] + o[2].offset, *C = base[o[3].base] + o[3].offset;
    switch (at->code) {
"""


def _source(dtype: torch.dtype) -> str:
    """The whole library."""
    tables = {"UNARY": UNARY, "BINARY": BINARY, "TERNARY": TERNARY, "INTO": INTO}
    cases = [f"case {CODES[name]}: {kind}({e})" for kind, table in tables.items() for name, e in table.items()]
    return f"typedef {C_TYPES[dtype]} T;" + _HEAD + "\n".join(cases) + "\n} } }\n"


def is_built(dtype: torch.dtype) -> bool:
    """Whether the library needs no compiler."""
    return dtype in _RUN or native.is_known(_key(dtype))


def library(dtype: torch.dtype) -> Callable[..., Any] | None:
    """run(instructions, count, bases); None where there is no compiler, or it fails, which is not tried again."""
    if dtype not in _RUN and compiler() is not None:
        _RUN[dtype] = _loaded(native.checked(_key(dtype))) or _made(dtype)
    return _RUN.get(dtype)


_RUN: dict[torch.dtype, Callable[..., Any] | None] = {}


def _made(dtype: torch.dtype) -> Callable[..., Any] | None:
    """From the library that is built now, and kept for other processes where the folder takes it."""
    with tempfile.TemporaryDirectory() as folder:
        built = _built(_source(dtype), Path(folder))
        if built is not None:
            native.put(_key(dtype), built.read_bytes())
        return _loaded(built)


def _loaded(file: Path | None) -> Callable[..., Any] | None:
    try:
        run = None if file is None else ctypes.CDLL(str(file)).run
    except (OSError, AttributeError):
        return None
    if run is not None:
        run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p], None
    return run


def _key(dtype: torch.dtype) -> str:
    parts = [_source(dtype), _FLAGS, *native.machine(compiler() or "")]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


_FLAGS = ("-O1", "-ftree-vectorize", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


def _built(text: str, folder: Path) -> Path | None:
    path, into = compiler(), folder / "run.so"
    if path is None:
        return None
    (folder / "run.cpp").write_text(text)
    done = subprocess.run([path, *_FLAGS, str(folder / "run.cpp"), "-o", str(into)], capture_output=True)
    return into if done.returncode == 0 else None
