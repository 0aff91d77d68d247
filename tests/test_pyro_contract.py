"""What ppgen relies on in Pyro and in torch beyond their documentation, a test each: a change is named on its day.

An id says what is relied on, and where. A private name that is imported without a row fails (the last test).
Known to hold with the versions of constraints.txt; docs/from_pyro.md says more.
"""

from __future__ import annotations

import ast
import copy
import inspect
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, optim, poutine
from pyro.infer import autoguide
from torch import nn
from torch.distributions import constraints

from ppgen.distributions import corrected, gaussian_hmm

ROOT = Path(__file__).resolve().parent.parent


def model(x=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3), poutine.scale(scale=2.0), poutine.mask(mask=torch.tensor([True, True, False])):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def mixture(x):
    with pyro.plate("data", 3):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)


def subsampled():
    with pyro.plate("data", 10, subsample_size=3):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def traced(program: Any, *args: Any) -> Any:
    return poutine.trace(program).get_trace(*args)


def site(name: str = "x") -> dict[str, Any]:
    return traced(model, torch.zeros(3)).nodes[name]


def names(fn: Any) -> list[str]:
    return list(inspect.signature(fn).parameters)


def stepped() -> infer.SVI:
    pyro.clear_param_store()
    guide = autoguide.AutoNormal(model)
    svi = infer.SVI(model, guide, optim.Adam({"lr": 0.1}), infer.Trace_ELBO())
    svi.step(torch.zeros(3))
    return svi


# -- Pyro ---------------------------------------------------------------------------------------------

SITE = {"type", "name", "fn", "value", "is_observed", "infer", "scale", "mask", "cond_indep_stack", "args", "kwargs"}
FRAME = {"name", "dim", "size", "counter", "full_size"}


def a_sample_site_has_these_entries__ppgen_terms():
    return site().keys() >= SITE


def a_plate_is_a_frame_with_these_fields__ppgen_terms():
    (frame,) = site()["cond_indep_stack"]
    return set(type(frame)._fields) >= FRAME and frame.vectorized and (frame.dim, frame.size) == (-1, 3)


def scale_and_mask_of_a_site_are_not_applied__ppgen_terms():
    return site()["scale"] == 2.0 and site()["mask"].tolist() == [True, True, False]


def handlers_stand_on_a_stack_and_are_asked_one_by_one__ppgen_handlers():
    """Replay and condition give a value in `_process_message`, by its name alone, and condition has its names in
    `data`; plates are told by a dimension, and what a message's handlers undo afterwards goes from the outermost
    inwards."""
    from pyro.poutine.indep_messenger import IndepMessenger
    from pyro.poutine.runtime import _PYRO_STACK

    held = poutine.trace(lambda: pyro.sample("mu", dist.Normal(0.0, 1.0))).get_trace()
    seen: list[Any] = []

    class Undo(poutine.messenger.Messenger):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def _pyro_post_sample(self, msg):
            seen.append(self.name)

    with poutine.replay(trace=held), pyro.plate("data", 3), Undo("outer"), Undo("inner"):
        msg = {"type": "sample", "name": "mu", "is_observed": False, "value": None, "done": False, "infer": {}}
        for frame in reversed(_PYRO_STACK):
            if isinstance(frame, poutine.replay_messenger.ReplayMessenger):
                frame._process_message(msg)
        open_plates = [m.dim for m in _PYRO_STACK if isinstance(m, IndepMessenger) and m._vectorized]
        pyro.sample("mu", dist.Normal(0.0, 1.0))
    with poutine.condition(data={"nu": torch.zeros(())}):
        held_names = list(_PYRO_STACK[-1].data)
    return (
        msg["value"] is held.nodes["mu"]["value"]
        and (open_plates, seen, held_names) == ([-1], ["outer", "inner"], ["nu"])
    )  # fmt: skip


def a_handler_around_a_function_is_a_bound_partial_of_it__ppgen_handlers():
    from pyro.poutine.messenger import _bound_partial

    def model():
        return None

    handled = pyro.poutine.scale(scale=2.0)(model)
    return all(type(f) is _bound_partial and f.args[1] is model for f in (handled, copy.deepcopy(handled)))


def a_plate_draws_its_subsample_in_a_static_method__ppgen_handlers():
    from pyro.poutine.subsample_messenger import SubsampleMessenger

    size, subsample_size, subsample = SubsampleMessenger._subsample("rows", 5, None, None)
    return (size, subsample_size, len(subsample)) == (5, 5, 5)


def a_site_without_scale_has_the_float_1__ppgen_terms():
    return type(site("mu")["scale"]) is float and site("mu")["mask"] is None


def scale_and_mask_takes_a_scale_and_a_mask__ppgen_terms():
    from pyro.distributions.util import scale_and_mask

    return scale_and_mask(torch.ones(2), 3.0, torch.tensor([True, False])).tolist() == [3.0, 0.0]


def a_subsampled_plate_is_a_site_that_prune_subsample_sites_removes__ppgen_program():
    from pyro.poutine.util import prune_subsample_sites

    found = traced(subsampled)
    return "data" in found.nodes and "data" not in prune_subsample_sites(found).nodes


def a_trace_has_stochastic_and_observation_nodes__ppgen_engine_joint():
    found = traced(model, torch.zeros(3))
    return found.stochastic_nodes == ["mu", "data"] and found.observation_nodes == ["x"]


def compute_log_prob_takes_a_filter_and_leaves_log_prob__ppgen_structure():
    found = traced(model, torch.zeros(3))
    found.compute_log_prob(lambda name, site: name == "x")
    return "log_prob" in found.nodes["x"] and "log_prob" not in found.nodes["mu"]


def a_messenger_sees_a_message_before_it_is_done__ppgen_handlers():
    class Seen(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            self.keys = set(msg) | {f"done={msg['done']}"}

    with Seen() as seen:
        model(torch.zeros(3))
    return seen.keys >= SITE | {"done", "stop", "continuation", "done=False"}


def a_parameters_message_is_get_param_of_the_store__ppgen_handlers():
    class Seen(poutine.messenger.Messenger):
        def _pyro_param(self, msg):
            self.fn, self.args = msg["fn"], msg["args"]

    with Seen() as seen:
        pyro.param("w", torch.ones(2))
    return seen.fn == pyro.get_param_store().get_param and seen.args[0] == "w"


def enumeration_is_read_from_compute_model_factors__ppgen_enumerated():
    from pyro.infer.traceenum_elbo import _compute_model_factors

    return names(_compute_model_factors) == ["model_trace", "guide_trace"]


def enumeration_asks_one_function_for_the_scale_of_a_sum__ppgen_enumerated():
    from pyro.infer import traceenum_elbo

    return names(traceenum_elbo._get_common_scale) == ["scales"]


def a_packed_log_prob_has_pyro_dims__ppgen_enumerated():
    elbo = infer.TraceEnum_ELBO(max_plate_nesting=1)
    p, _ = next(elbo._get_traces(mixture, lambda x: None, (torch.zeros(3),), {}))
    return len(p.nodes["x"]["packed"]["unscaled_log_prob"]._pyro_dims) == 2


def contract_tensor_tree_is_there__ppgen_enumerated():
    from pyro.ops.contract import contract_tensor_tree, contract_to_tensor

    conditional = names(contract_to_tensor)[:4] == ["tensor_tree", "sum_dims", "target_ordinal", "target_dims"]
    return conditional and names(contract_tensor_tree)[:2] == ["tensor_tree", "sum_dims"]


def an_autoguide_keeps_its_model_in_a_tuple__ppgen_program():
    (kept,) = autoguide.AutoNormal(model)._model
    return callable(kept)


def a_pyro_module_has_a_context_and_reads_parameters_in_getattr__ppgen_handlers():
    from pyro.nn.module import PyroModule, _Context

    return isinstance(PyroModule()._pyro_context, _Context) and PyroModule.__getattr__.__code__ is not None


def deep_setattr_sets_through_names_with_dots__inference_training_guide_init():
    from pyro.infer.autoguide.utils import deep_setattr

    outer = pyro.nn.PyroModule("outer")
    deep_setattr(outer, "a.b", nn.Parameter(torch.ones(1)))
    return outer.a.b.item() == 1.0


def a_sequential_plate_is_iterated_by_these_attributes__ppgen_engine_trace():
    from pyro.poutine.indep_messenger import IndepMessenger

    plate = pyro.plate("data", 3)
    known = all(hasattr(plate, name) for name in ("next_context", "size", "subsample_size", "dim"))
    return isinstance(plate, IndepMessenger) and known


def pyro_asks_torch_whether_it_records__ppgen_engine_trace():
    from pyro.distributions import util

    return "torch._C._get_tracing_state" in inspect.getsource(util.is_identically_zero)


def nan_is_looked_for_by_these_functions__ppgen_engine_trace():
    return callable(pyro.util.torch_isnan) and "torch_isnan" in inspect.getsource(pyro.util.warn_if_nan)


def enumeration_leaves_out_zeros_by_masked_select__ppgen_engine_trace():
    from pyro.infer import util

    return "masked_select" in inspect.getsource(util)


def provenance_is_tracked_in_tensors__inference_report_model_graph():
    from pyro.ops.provenance import get_provenance, track_provenance

    return get_provenance(track_provenance(torch.ones(1), frozenset({"x"})) + 1) == frozenset({"x"})


# -- Pyro, for ppgen.pyro_compat -----------------------------------------------------------------------


def a_parameter_tells_its_unconstrained_tensor__recorded():
    value = pyro.param("s", torch.ones(2), constraint=constraints.positive)
    return value.unconstrained() is dict(pyro.get_param_store().named_parameters())["s"]


def a_modules_parameter_is_the_stores_own__recorded():
    net = nn.Linear(1, 1)
    pyro.module("net", net)
    return dict(pyro.get_param_store().named_parameters())["net$$$weight"] is net.weight


def svi_keeps_these_attributes__svi():
    return {"model", "guide", "optim", "loss", "loss_and_grads"} <= vars(stepped()).keys()


def svi_steps_what_a_param_only_trace_finds__updates():
    source = inspect.getsource(infer.SVI.step)
    return all(s in source for s in ("param_only=True", "unconstrained()", "self.optim(params)", "zero_grads(params)"))


def losses_are_numbers_by_item_within_pyro_infer__recorded():
    from pyro.infer import util

    return "x.item()" in inspect.getsource(util.torch_item) and util.__name__.startswith("pyro.infer")


def gradients_are_made_by_backward_of_a_tensor__recorded():
    return ".backward(retain_graph=" in inspect.getsource(infer.Trace_ELBO.loss_and_grads)


def an_optimiser_a_parameter__updates():
    svi = stepped()
    kinds = {type(o) for o in svi.optim.optim_objs.values()}
    return kinds == {torch.optim.Adam} and svi.optim.optim_objs.keys() == svi.optim.grad_clip.keys()


def a_scheduler_holds_its_optimiser__updates():
    scheduler = optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.5})
    w = pyro.param("w", torch.ones(1))
    w.unconstrained().grad = torch.ones(1)
    scheduler([w.unconstrained()])
    return type(scheduler.optim_objs[w.unconstrained()].optimizer) is torch.optim.SGD


def clipped_adam_counts_in_python_and_decays_its_rate__updates():
    from pyro.optim.clipped_adam import ClippedAdam

    p = torch.ones(1, requires_grad=True)
    own = ClippedAdam([p], lr=1.0, lrd=0.5)
    p.grad = torch.ones(1)
    own.step()
    return own.state[p]["step"] == 1 and own.param_groups[0]["lr"] == 0.5 and own.state[p].keys() == {
        "step", "exp_avg", "exp_avg_sq"
    }  # fmt: skip


def zero_grads_makes_zeros__updates():
    from pyro.infer.util import zero_grads

    p = torch.ones(1, requires_grad=True)
    p.grad = torch.ones(1)
    zero_grads([p])
    return p.grad.item() == 0.0


def am_i_wrapped_sees_handlers__calls():
    from pyro.poutine.runtime import am_i_wrapped

    with poutine.trace():
        return am_i_wrapped()


def hmc_makes_its_potential_in_one_method__kernels():
    kernel = infer.NUTS(model)
    kernel._initialize_model_properties((torch.zeros(3),), {})
    return names(infer.HMC._initialize_model_properties) == ["self", "model_args", "model_kwargs"] and set(
        kernel.initial_params
    ) == {"mu"} and kernel.potential_fn(kernel.initial_params).dim() == 0  # fmt: skip


def predictive_runs_one_after_the_other_by_one_function__predictive():
    from pyro.infer import predictive

    return names(predictive._predictive_sequential) == [
        "model", "posterior_samples", "model_args", "model_kwargs", "num_samples", "return_site_shapes"
    ] and set(predictive._predictiveResults.__dataclass_fields__) == {"samples", "trace"}  # fmt: skip


# -- torch --------------------------------------------------------------------------------------------


def make_fx_records_around_fake_tensors__ppgen_engine_trace():
    from torch.fx.experimental.proxy_tensor import make_fx

    held = torch.ones(2)
    graph = make_fx(lambda x: x + held, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.zeros(2))
    return [n.op for n in graph.graph.nodes] == ["placeholder", "get_attr", "call_function", "output"]


def a_mode_sees_operations_below_autograd__ppgen_engine_record():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    x = torch.ones(2, requires_grad=True)
    with Seen():
        torch.autograd.grad(x.exp().sum(), x)
    return seen[0] == "exp" and "mul" in seen


def a_lazy_graph_writes_its_python_when_asked__ppgen_engine_record():
    from torch.fx._lazy_graph_module import _LazyGraphModule

    graph = torch.fx.symbolic_trace(lambda x: torch.sin(x)).graph
    lazy = _LazyGraphModule(torch.nn.Module(), graph)
    return lazy._needs_recompile() and "sin" in lazy.code and bool(lazy(torch.zeros(1)) == 0)


def operations_tell_who_has_them__ppgen_engine_record():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    name = "CompositeImplicitAutograd"
    matmul, norm = torch.ops.aten.matmul.default.name(), torch.ops.aten.native_batch_norm.default.name()
    return has(matmul, name) and not has(matmul, "CPU") and has(norm, "CPU")


def torch_func_takes_gradients_by_this_function__ppgen_engine_without_dynamo():
    from torch._functorch import eager_transforms

    given = ["outputs", "inputs", "grad_outputs", "retain_graph", "create_graph"]
    return names(eager_transforms._autograd_grad) == given


def optimisers_ask_for_dynamo_by_a_mark__ppgen_engine_without_dynamo():
    from ppgen.engine.graphs import without_dynamo

    without_dynamo.leave_out()
    marked = [getattr(torch.optim.Optimizer, name).__wrapped__ for name in without_dynamo._MARKED]
    hooks = vars(torch.optim.SGD([torch.ones(1)]))
    return all(callable(fn.__dynamo_disable) for fn in marked) and "_optimizer_step_pre_hooks" in hooks


def what_a_graph_holds_shares_its_memory__recorded():
    from ppgen.engine import trace

    held = torch.ones(2, requires_grad=True)
    (constant,) = trace(lambda x: (x * held).detach(), [torch.zeros(2)]).constants
    return constant.data_ptr() == held.data_ptr()


def operations_have_tags_and_schemas__ppgen_engine_noise():
    op = torch.ops.aten.normal_.default
    seeded = torch.Tag.nondeterministic_seeded in op.tags
    return isinstance(op, torch._ops.OpOverload) and seeded and op._schema.is_mutable and callable(op._op)


def dirichlet_draws_have_these_parts__ppgen_engine_trace():
    from torch.distributions import dirichlet

    return callable(dirichlet._Dirichlet) and callable(torch._sample_dirichlet) and callable(torch._dirichlet_grad)


def a_pyro_module_lists_its_priors__ppgen_check():
    layer = pyro.nn.PyroModule[nn.Linear](1, 1)
    layer.bias = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    return list(layer._pyro_samples) == ["bias"]


def a_modules_parameters_can_be_replaced__ppgen_draws():
    from torch.nn.utils.stateless import _reparametrize_module

    return names(_reparametrize_module)[:2] == ["module", "parameters_and_buffers"] and "tie_weights" in names(
        _reparametrize_module
    )


def trees_are_mapped_by_kind__ppgen_engine_trace():
    from torch.utils._pytree import tree_map_only

    return tree_map_only(int, lambda i: i + 1, [1, "a"]) == [2, "a"]


def tensors_count_what_is_written_to_them__updates():
    t = torch.zeros(1)
    before = t._version
    t.add_(1)
    return t._version == before + 1


def a_node_of_autograd_tells_its_leaf__recorded():
    p = torch.ones(1, requires_grad=True)
    ((node, _),) = (2 * p).grad_fn.next_functions[:1]
    return node.variable is p


def a_tensor_tells_its_hooks__recorded():
    p, q = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    none = not p._backward_hooks and not p._post_accumulate_grad_hooks
    p.register_hook(lambda g: g)
    q.register_post_accumulate_grad_hook(lambda t: None)
    return none and len(p._backward_hooks) == len(q._post_accumulate_grad_hooks) == 1


def norms_and_products_of_lists__inference_training_step():
    (norm,), (twice,) = torch._foreach_norm([torch.ones(4)]), torch._foreach_mul([torch.ones(1)], 2)
    return norm.item() == 2.0 and twice.item() == 2.0


def batch_norm_is_known_by_its_base__ppgen_engine_gradient():
    return isinstance(nn.BatchNorm1d(2), nn.modules.batchnorm._NormBase)


def the_optimisers_have_these_options_and_states__ppgen_engine_optimisers():
    p = torch.ones(1, requires_grad=True)
    p.grad = torch.ones(1)
    for kind, options, state in (
        (torch.optim.Adam, {"betas", "eps", "weight_decay", "amsgrad", "maximize"}, {"step", "exp_avg", "exp_avg_sq"}),
        (torch.optim.SGD, {"momentum", "dampening", "nesterov", "weight_decay"}, {"momentum_buffer"}),
        (torch.optim.RMSprop, {"alpha", "eps", "centered", "momentum", "weight_decay"}, {"step", "square_avg"}),
    ):
        own = kind([p], lr=0.1, momentum=0.9) if kind is torch.optim.SGD else kind([p], lr=0.1)
        own.step()
        if not options <= own.param_groups[0].keys() or own.state[p].keys() != state:
            return False
    return True


def inductor_compiles_a_graph_of_aten__ppgen_engine_compile():
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.output_code import CompiledFxGraph

    known = hasattr(CompiledFxGraph, "post_compile") and hasattr(config, "fallback_random")
    return known and names(compile_fx)[:2] == ["model_", "example_inputs_"]


def inductor_looks_operations_up_in_a_table__ppgen_engine_small():
    from torch._inductor.decomposition import decompositions

    return isinstance(decompositions, dict)


def inductor_asks_which_instructions_there_are__ppgen_engine_compile():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import VecISA

    return callable(get_cpp_compiler) and hasattr(VecISA, "build_arch_flags")


def inductor_loads_what_it_built_as_an_extension_that_reads_an_address__ppgen_engine_native():
    return isinstance(torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr, int)


def inductors_entry_takes_and_gives_handles__ppgen_engine_compile():
    aoti = torch._C._aoti
    return callable(aoti.unsafe_alloc_void_ptrs_from_tensors) and callable(
        aoti.alloc_tensors_by_stealing_from_void_ptrs
    )


def inductor_keeps_its_code_in_a_folder__ppgen_engine_compile():
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return isinstance(default_cache_dir(), str)


def inductors_wrapper_with_arrays_has_a_header_of_few__ppgen_engine_compile():
    from torch._inductor.codegen.cpp_wrapper_cpu_array_ref import CppWrapperCpuArrayRef

    from ppgen.engine.compiling.compile import _few_headers

    whole = CppWrapperCpuArrayRef.get_device_include_path_jit("cpu")
    with _few_headers():
        few = CppWrapperCpuArrayRef.get_device_include_path_jit("cpu").splitlines()
    return (
        "array_ref.h" in whole and any("cpp_wrapper/common.h" in x for x in few) and not any("impl" in x for x in few)
    )


def inductor_runs_within_a_tracing_context__ppgen_engine_compile():
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode

    with tracing(TracingContext(FakeTensorMode())):
        return True


def a_tensor_within_a_transform_of_torch_func_is_told_apart__ppgen_engine_record():
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    within = []
    torch.func.vmap(lambda x: [within.append(wrapped(x)), x][1])(torch.ones(2))
    return within == [True] and not wrapped(torch.ones(2))


def an_lkj_draws_by_its_beta_which_is_still_wrong_in_torch__ppgen_distributions_corrected():
    d = dist.LKJCholesky(3, 1.0)
    right, torchs = d._beta.concentration1.tolist(), copy.copy(d)
    corrected._made(torchs, 3, 1.0)
    return right == [0.5, 0.5, 1.0] and torchs._beta.concentration1.tolist() == [0.5, 0.5, 1.5]


def a_gaussian_hmm_takes_a_small_difference_of_precisions__ppgen_distributions_gaussian_hmm():
    eye, walk = torch.eye(1), [dist.Normal(torch.zeros(1), scale).to_event(1) for scale in (1.0, 1.0, 1e-4)]
    d = dist.GaussianHMM(walk[0], eye, walk[1], eye, walk[2], duration=60)
    x = torch.linspace(0, 3, 60)[:, None]
    return {"_init", "_trans", "_obs"} < set(vars(d)) and abs(gaussian_hmm._density(d, x) - d.log_prob(x)) > 1


def a_mode_that_is_left_out_is_an_excluded_key__ppgen_engine_trace():
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python) is False


HERE = list(vars(sys.modules[__name__]).items())
CONTRACT = [fn for name, fn in HERE if "__" in name and inspect.isfunction(fn)]


@pytest.mark.parametrize("holds", CONTRACT, ids=lambda fn: fn.__name__.replace("__", " (", 1).replace("_", " ") + ")")
def test_contract(holds):
    assert holds()


def private_imports(path: Path) -> set[str]:
    """`module.name` of what a file imports from torch or Pyro although a part of it begins with an underscore."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("torch", "pyro"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {f for f in found if any(part.startswith("_") for part in f.split("."))}


def test_every_private_import():
    sources = [p for folder in ("ppgen", "inference", "models") for p in (ROOT / folder).rglob("*.py")]
    assert set().union(*map(private_imports, sources)) <= private_imports(Path(__file__))
