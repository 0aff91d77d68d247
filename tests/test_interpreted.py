"""Graphs by our interpreter: every operation, layout and stretch beside torch's own run."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.distributions import HalfNormal, Normal, Uniform
from torch.func import grad

from ppgen import Program
from ppgen.engine import log_joint
from ppgen.engine.compiling.compile import compiler
from ppgen.engine.graphs.trace import trace
from ppgen.engine.interpreter import instructions
from ppgen.engine.interpreter.interpreted import interpreted as of_graph

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")

T = torch.linspace(-1.3, 1.4, 12).reshape(3, 4).double()
P = T.abs() + 0.1


def interpreted(fn, *inputs):
    """As `LogJoint` does it; None where torch keeps it."""
    traced = trace(fn, inputs)
    run = of_graph(traced.graph, [*inputs, *traced.constants])
    return None if run is None else lambda *u: run(*u, *traced.constants)


def same(fn, *inputs, other=None):
    """Interpreted on one input and run on another: torch's results; the program."""
    run = interpreted(fn, *inputs)
    assert run is not None
    at = inputs if other is None else other
    torch.manual_seed(3)
    ours = run(*at)
    torch.manual_seed(3)
    for a, b in zip(fn(*at), ours, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-13, equal_nan=True)
    return run


UNARY = [
    torch.neg, torch.abs, torch.exp, torch.expm1, torch.sigmoid, torch.tanh, torch.sin, torch.cos, torch.tan,
    torch.atan, torch.erf, torch.square, torch.relu, torch.sign, torch.isnan, torch.nn.functional.softplus,
    torch.clone, lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp(max=0.0), lambda x: x**3, lambda x: x**2.5,
]  # fmt: skip
POSITIVE = [torch.log, torch.log1p, torch.sqrt, torch.rsqrt, torch.reciprocal, torch.lgamma, lambda x: x**-0.7]
BINARY = [
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.eq, torch.lt, torch.ge,
    lambda x, y: torch.add(x, y, alpha=3), lambda x, y: torch.sub(x, y, alpha=-2), lambda x, y: 1.5 - x * y,
    lambda x, y: torch.where(x > y, x, 2 * y), lambda x, y: x.masked_fill((x > 0) & ~(y > 0.3), 7.0),
    lambda x, y: (x > 0).double() * y, lambda x, y: torch.logical_or(x > 0, y > 0),
]  # fmt: skip


def test_every_elementwise_operation_is_torchs():
    with_nan = T.clone()
    with_nan[1, 2], with_nan[2, 0] = torch.nan, torch.inf
    same(lambda x, p: [f(x) for f in UNARY] + [f(p) for f in POSITIVE], T, P, other=(with_nan, with_nan.abs()))
    same(lambda x, y: [f(x, y) for f in BINARY], T, T.flip(0), other=(with_nan, T.flip(1)))


def test_layouts_are_followed():
    def layouts(x, y):
        z = x[:, None, ::2] * y.T[None, :3, :2] + y[0, 0]
        w = torch.stack([x[0], y[1] * 2, x[2] + 1]), torch.cat([x.T + 1, y.T, (x * y).T[:1]], 1 - 1)
        u = (x * 2).T.reshape(12) + (y * 2).expand(2, 3, 4).sum(0).reshape(12)
        return [z, *w, u, z.sum(), z.sum((0, 2)), z.mean(1, True), x.amax(0), (x + y).amin(1), x.T, (x - 1).T[1:]]

    same(layouts, T, P, other=(P.T.contiguous().T, T))
    pad = torch.nn.functional.pad
    same(lambda x: [pad(x, (1, -2, 0, 3), value=7.0), x.sin() + pad(x[1:], (0, 0, 1, 0)), pad(x, (-1, -1)) * 2], T)
    same(lambda x: [sum(x[i, j, k] * x.movedim(0, -1)[j] for i in (0, 1) for j in (0, 1) for k in range(9))],
         torch.randn(2, 2, 9).double())  # fmt: skip
    four = torch.randn(2, 3, 2, 3, 2).double()
    same(lambda x, y: [(x * y.movedim(0, 3).transpose(1, 4).movedim(3, 0).transpose(2, 4)).sin() + x], four, four)


def test_gradients_of_a_loop_over_entries_take_no_memory_of_the_whole():
    def loss(x, a):
        v = a
        for t in range(40):
            v = 0.9 * v + x[..., t] * v.sin()
        return (v * x[..., 0]).sum()

    inputs = torch.randn(3, 40).double(), torch.ones(3).double()
    traced = trace(lambda x, a: [*grad(loss, (0, 1))(x, a)], inputs)
    run = of_graph(traced.graph, [*inputs, *traced.constants])
    for a, b in zip(grad(loss, (0, 1))(*inputs), run(*inputs, *traced.constants), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-13)
    assert run._arena.numel() < 3 * 40 * 12  # 40 gradients of (3, 40) would be 4 800 values


def test_torch_runs_the_rest_in_its_order():
    def mixed(x, big):
        y = x @ x.T + 1
        noise = torch.randn_like(y)
        z = torch.linalg.cholesky(y @ y.T + 3 * torch.eye(3)) * noise
        more = torch.rand_like(y) + z
        for _ in range(30):
            more = 0.5 * more + x[:, :3] * 0.1
        return [more, z > 0, big.sum(1), (noise + more).T @ x]

    same(mixed, T, torch.ones(2, 70_000).double())
    assert interpreted(lambda x: [torch.rand_like(x.T) * 2 + x.T.sin() * 3 - x.T], T) is None  # by columns


def test_a_result_is_the_callers():
    run = interpreted(lambda x: [x + 1, x * 2 - 1, (x * 3).exp()], T)
    first = [v.clone() for v in run(T)]
    kept = run(T)
    run(T + 5)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_what_is_written_in_place():
    def fresh(x):
        y = x * 2
        y.add_(1).mul_(x)
        return [y + x, y * 3 - x]

    same(fresh, T)

    def shared(x):
        y = x * 2
        y[0].add_(1)
        return [y + x, y * 3 - x]

    assert interpreted(shared, T) is None


def test_float32(monkeypatch):
    x = T.float()
    run = interpreted(lambda x: [(x * 3).sin().sum(0), x > 0, x.double() * 2], x)
    assert run is None or run(x)[2].dtype == torch.float64
    run = interpreted(lambda x: [x * 3 + 1 - x / 2, (x + 1).sum()], x)
    assert run is not None and run(x)[0].dtype == torch.float32
    monkeypatch.setattr(instructions, "compiler", lambda: None)
    monkeypatch.setattr(instructions, "_RUN", {})
    monkeypatch.setattr(instructions.native, "checked", lambda key: None)
    assert interpreted(lambda x: [x * 3 + 1 - x / 2], x) is None


def test_a_library_needs_no_folder_and_is_tried_once(monkeypatch):
    """A full or read-only cache: it is loaded from where it was built. A compiler that fails is asked once."""
    run = instructions.library(torch.float64)
    kept, asked = instructions.native.checked(instructions._key(torch.float64)), []
    monkeypatch.setattr(instructions.native, "checked", lambda key: None)
    monkeypatch.setattr(instructions.native, "put", lambda key, content: None)
    for built, found in ((kept, True), (None, False)):
        monkeypatch.setattr(instructions, "_RUN", {})
        monkeypatch.setattr(instructions, "_built", lambda *_, built=built: asked.append(1) or built)
        for _ in range(2):
            assert (instructions.library(torch.float64) is not None) == found
    assert len(asked) == 2 and run is not None


def test_a_graph_of_other_things_stays_with_torch():
    n = torch.arange(6)
    assert interpreted(lambda n: [n * 2 + 1], n) is None
    assert interpreted(lambda x: [x @ x.T, x.T @ x, torch.linalg.inv(x @ x.T)], T) is None


def test_a_log_joint_of_a_loop(double):
    y = torch.randn(20, dtype=torch.float64)

    def garch(y):
        m, a, b = pyro.sample("m", Normal(0, 1)), pyro.sample("a", HalfNormal(1)), pyro.sample("b", Uniform(0, 1))
        v, total = torch.ones(()), 0.0
        for t in range(1, len(y)):
            v = a + b * (y[t - 1] - m) ** 2 + (1 - b) * 0.5 * v
            total = total + Normal(m, v.sqrt()).log_prob(y[t])
        pyro.factor("y", total)

    program, u = Program.from_pair(garch), torch.randn(64, 3)
    instructions.library(torch.float64)
    auto, trace = (log_joint(program, {"y": y}, engine=e, calls=1000) for e in ("auto", "trace"))
    for a, b in zip(auto.value_and_grad(u), trace.value_and_grad(u), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    run = auto._graphs["grad", u.shape, u.dtype]
    assert "by_interpreter" in run.__qualname__


def test_numbers_of_another_type_stay_with_torch():
    """Whole numbers above 2^24 are not all float32, and a comparison that is written in place gives real numbers."""

    def chosen(x, day):
        v = x
        for _ in range(40):
            v = 0.9 * v + 0.1 * v.cos()
        return [torch.where(day == 20000021, v, 0.0)]

    def written(x, day):
        above = x.clone().gt_(0)
        for _ in range(40):
            x = 0.9 * x + 0.1 * x.cos()
        return [(above + above) * x]

    day = torch.tensor([20000020, 20000021, 20000022])
    for fn in (chosen, written):
        x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float32)
        run = interpreted(fn, x, day)
        assert run is None or torch.allclose(run(-x, day)[0], fn(-x, day)[0])
