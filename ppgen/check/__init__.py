"""The contract's checks: one traced execution of both parts, before the first step.

Each failure is one sentence that names the site, what was found, what was expected, and the remedy.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppgen import data as data_module
from ppgen.check.agreement import (
    observed_fit,
    observed_in_support,
    plates_fit,
    plates_of,
    shape_table,
    sites_match,
    supports_match,
)
from ppgen.check.auxiliary import auxiliary_fault
from ppgen.check.counted import warn_of_rows_counted_again
from ppgen.check.cut_gradients import warn_of_cut_gradients
from ppgen.check.held import warn_of_held_data
from ppgen.check.missing import validate
from ppgen.check.narrower import is_impossible_beyond
from ppgen.check.own_seed import own_seed_said
from ppgen.check.whole_columns import rows_outside
from ppgen.enumerated import require_summable
from ppgen.errors import PpgenError, nearest
from ppgen.frames import owner
from ppgen.handlers import user_validates, without_validation
from ppgen.program import Program, arguments
from ppgen.sites import innermost, sample_sites, support_of
from ppgen.structure import Structure, longer_run, structure_of
from ppgen.supports import moving
from ppgen.terms import Traces, guide_run, run

OTHER_RUNS = 3  # of the guide, to see whether its sites are the same from run to run


def check(
    program: Program,
    data: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    enumerated: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
    learn: bool = True,
) -> Structure:
    """Runs every check of the contract and returns the program's structure. The random state is left as it was.

    Args:
        program: set up already (`Program.setup`).
        data: the columns, all rows.
        batch_size: rows a step, if fewer than all.
        enumerated: discrete latents that are summed out: the guide does not have them.
        rows: the row columns, where these data are a few rows that do not tell them.
        learn: whether it is to be trained: then each parameter must get a gradient.

    Raises:
        PpgenError: one sentence on the first thing that is wrong.
    """
    return check_with_runs(
        program, data, batch_size=batch_size, enumerated=enumerated, rows=rows, learn=learn
    ).structure


def check_with_runs(
    program: Program, data: Mapping[str, Any], *, batch_size: int | None = None, rows: tuple[str, ...] = (), **how: Any
) -> Checked:
    """`check`, with the runs that it looked at; its arguments, those that `checked` takes too by name."""
    columns(program, data)
    validate(program, data, fits=True)
    rows = rows or data_module.row_columns(data)
    n = data_module.n_rows(data, rows)
    size = min(batch_size or n, n)
    batch = data_module.take(data, torch.arange(size), rows) if size < n else data
    with torch.random.fork_rng(), without_validation(), program.in_brief():
        with running_of(program, batch), torch.enable_grad():
            traces = (poutine.trace(lambda part=part: program.call(part, batch)) for part in ("model", "guide"))
            apart = Traces(*(t.get_trace() for t in traces))
        return checked(program, batch, apart, data=data, rows=rows, **how)


class Checked(NamedTuple):
    """What the checks found.

    Attributes:
        structure: of the program.
        run: the run of the pair that they looked at.
        longer: a run on one row more; None where there is none.
        differ: whether values decide which sites a run has.
    """

    structure: Structure
    run: Traces
    longer: Traces | None
    differ: bool = False


def checked(
    program: Program,
    batch: Mapping[str, Any],
    apart: Traces,
    *,
    data: Mapping[str, Any],
    enumerated: tuple[str, ...] = (),
    rows: tuple[str, ...] = (),
    learn: bool = True,
    along_paths: bool = True,
) -> Checked:
    """The checks, on a run of both parts by themselves, one of the pair, and one of the pair on a row more.

    Args:
        batch: the first batch, or all rows.
        apart: traces of both parts on it, the model's at latents of its own: a guide's shapes cannot upset it.
        data: all rows.
        enumerated, rows, learn: as of `check`.
        along_paths: whether the gradient takes derivatives in latents.
    """
    size, n = data_module.n_rows(batch, rows), data_module.n_rows(data, rows)
    with torch.random.fork_rng(), without_validation(), program.in_brief():
        apart = Traces(*map(prune_subsample_sites, apart))
        differ = _sites(program, batch, apart, enumerated)
        observed_fit(apart.p, n, size)
        plates_fit(apart)
        supports_match(apart, unvalidated(program, batch), partial(is_impossible_beyond, program, batch, apart))
        if size < n:
            _later_rows(program, apart.p, data, batch, rows)
        if program._autoguide is not None:
            _fixed_supports(program, batch, apart)
        # From one random state: what differs between the two runs is the rows.
        own = torch.random.fork_rng(devices=[]), own_seed_said(program, batch)
        with running_of(program, batch), torch.enable_grad(), own[0], own[1]:
            t = run(program, batch)
        if not sample_sites(t.p, factors=True):
            raise PpgenError(f"{program.name} has no sample site, so that there is nothing to fit; give it one")
        longer = longer_run(program, batch, rows)
        structure = structure_of(t, longer, batch, enumerated=enumerated, rows=rows)
        warn_of_rows_counted_again(program, batch, structure)
        if learn:
            _auxiliary(program, batch, t, structure)
            warn_of_held_data(structure, lambda: longer)
        if size < n:
            _minibatch(program, structure, t, n, batch, rows)
            _weighed_once(structure, t, longer, n, size)
        _log_probs(t, enumerated, program.gaps)
        if enumerated:
            with running_of(program, batch):
                require_summable(program, batch, structure.nesting, enumerated)
        elif learn:
            _gradients(program, t)
            if along_paths:
                with running_of(program, batch):
                    warn_of_cut_gradients(program, batch, t)
    return Checked(structure, t, longer, differ)


def _auxiliary(program: Program, batch: Mapping[str, Any], t: Traces, structure: Structure) -> None:
    with running_of(program, batch):
        fault = auxiliary_fault(program, batch, t, structure)
    if fault:
        log.warning("the ELBO that is maximised is no bound on log p(x): %s", fault)


def _later_rows(
    program: Program, model: poutine.Trace, data: Mapping[str, Any], batch: Mapping[str, Any], rows: tuple[str, ...]
) -> None:
    """Runs on rows beyond the first batch whose observed values seem to be outside of a support."""
    for name, row in rows_outside(model, data, batch):
        index = torch.arange(data_module.n_rows(batch, rows))
        index[0] = row
        with_it = data_module.take(data, index, rows or data_module.row_columns(data))
        with running_of(program, with_it):
            site = poutine.trace(lambda some=with_it: program.call("model", some)).get_trace().nodes.get(name)
        if site is not None:
            observed_in_support(name, site, unvalidated(program, with_it))


def _fixed_supports(program: Program, batch: Mapping[str, Any], apart: Traces) -> None:
    """An automatic guide finds the transform to each support in one run, and keeps it."""
    supports = {n: support_of(apart.p.nodes[n]["fn"]) for n in sample_sites(apart.q) if n in apart.p.nodes}
    own = [n for n, support in supports.items() if support is not None and not support.is_discrete]
    with running_of(program, batch):
        found = moving(lambda: program.call("model", batch), apart.p.nodes, own)
    if found:
        raise PpgenError(
            f"the support of the latent {found[0]!r} ({type(innermost(apart.p.nodes[found[0]]['fn'])).__name__}) "
            "depends on other latents, and an automatic guide would keep that of one run, and miss what lies beyond; "
            "draw a share of it from Uniform(0, 1) and scale that, write its guide, or take ppgen infer or mcmc"
        )


# -- columns -------------------------------------------------------------------------------------


def columns(program: Program, data: Mapping[str, Any]) -> None:
    """Every column has its argument, and every argument that must have one its column."""
    names, needed, takes_any, many = arguments(program.model)
    for name in needed:
        if name not in data:
            raise PpgenError(
                f"model({', '.join(names)}) of {program.name} needs the column {name!r}, and the data have "
                f"{', '.join(map(repr, data)) or 'none'}{nearest(name, data)}; "
                f"name it with columns={{{name!r}: ...}} (--columns {name}=...)"
            )
    if takes_any:
        return
    for name in {data_module.argument_of(k, data): None for k in data}:
        if name not in names and name != many:
            raise PpgenError(
                f"the data's column {name!r} is taken by no argument of model({', '.join(names)}) of {program.name}"
                f"{nearest(name, names)}; leave it out, or name the columns that are wanted with columns= (--columns)"
            )


# -- running it ----------------------------------------------------------------------------------


log = logging.getLogger("ppgen")


@contextmanager
def running_of(program: Program, data: Mapping[str, Any]) -> Iterator[None]:
    """Whatever a program raises when it is run on data, as one sentence."""
    try:
        yield
    except PpgenError:
        raise
    except Exception as e:
        if "ImproperUniform" in str(e) or "improper" in str(e).lower():
            raise PpgenError(
                f"{program.name} has an ImproperUniform prior, at which the guide cannot begin; name the guide "
                "(guide='AutoNormal'), or write ppgen.distributions.Flat(support), which starts at a feasible point"
            ) from e
        if isinstance(e, ModuleNotFoundError) and e.name:
            raise PpgenError(
                f"{program.name} needs the package {e.name!r}{_user_line(e)}, which is not installed; install it, or "
                "write the model without it"
            ) from e
        twice = re.match(r"Multiple sample sites named '(.*)'", str(e))
        if twice and len(parts := _with_priors(program, twice[1])) > 1:
            raise PpgenError(
                f"{program.name} has a prior of {twice[1]!r} in {' and '.join(parts)}, whose sites have one name; put "
                f"both into one PyroModule: self.net = PyroModule('net'), self.net.{parts[0]} = ..."
            ) from e
        if twice:
            raise PpgenError(
                f"{program.name} uses the name {twice[1]!r} twice in one run; give each site a name of its own, and "
                "make a plate once: data = ppgen.rows(x), then `with data:` as often as it is wanted"
            ) from e
        if "modified by an inplace operation" in str(e):
            raise PpgenError(
                f"{program.name} writes over what it has read{_user_line(e)}, and torch has no gradient of that "
                "(h[t] = f(h[t - 1])); append to a list and torch.stack it, or read h[t - 1].clone()"
            ) from e
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in data.items() if isinstance(v, Tensor))
        on = f" on a batch with {shapes}" if shapes else ""
        raise PpgenError(
            f"{program.name} failed{on}: {type(e).__name__}{_user_line(e)}: {_first_line(e)}; "
            "run with --debug to see the traceback"
        ) from e


def _with_priors(program: Program, name: str) -> list[str]:
    """The PyroModules beside each other in a program that have a PyroSample of this name."""
    own = program.named_children()
    return [part for part, module in own if isinstance(module, PyroModule) and name in module._pyro_samples]


def _first_line(e: BaseException) -> str:
    """Of a message; and what its next lines say beneath it, as Pyro's do ("Expected [], actual [5]")."""
    first, *rest = (str(e).strip() or "no message").splitlines()
    beneath = itertools.takewhile(
        lambda line: line.startswith("  ") and not line.strip().startswith(("Try", "Trace Shapes")), rest
    )
    return " ".join([first, *(line.strip() for line in beneath)])


def _user_line(e: BaseException) -> str:
    """The innermost frame that is neither torch's, Pyro's nor ppgen's own."""
    own = [(frame.f_code.co_filename, n) for frame, n in walk_tb(e.__traceback__) if owner(frame) == "own"]
    return f" at {Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


# -- numbers -------------------------------------------------------------------------------------


def _sites(program: Program, batch: Mapping[str, Any], apart: Traces, enumerated: tuple[str, ...]) -> bool:
    """Both parts have the same latents: in two runs by themselves, or, where values decide which sites there are, in a
    run of the model at the guide's. Returns whether they do."""
    try:
        sites_match(apart, enumerated)
        return _names_vary(program, batch, apart.q)
    except PpgenError:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                pair = run(program, batch)
        except Exception:
            pair = None
        if pair is None or not _same_latents(pair) or _same_latents(apart):
            raise
        log.info("the sites of %s depend on values: each run has its own", program.name)
        return True


def _names_vary(program: Program, batch: Mapping[str, Any], q: poutine.Trace) -> bool:
    """Whether a guide with scores to take, of several runs at once, has other latents from run to run."""
    drawn = sample_sites(q)
    if all(s["fn"].has_rsample for s in drawn.values()):
        return False
    frames = [f for s in drawn.values() for f in s["cond_indep_stack"]]
    if any(not f.vectorized and f.full_size not in (None, f.size) for f in frames):
        return True  # a sequential plate that subsamples
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        runs = (prune_subsample_sites(guide_run(program, batch)) for _ in range(OTHER_RUNS))
        return any(sample_sites(other).keys() != drawn.keys() for other in runs)


def _same_latents(t: Traces) -> bool:
    model, guide = (sample_sites(trace, deterministic=False) for trace in t)
    return {n for n, s in model.items() if not s["is_observed"]} == {
        n for n, s in guide.items() if not s["infer"].get("is_auxiliary")
    }


def unvalidated(program: Program, batch: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the values of an observed site are not to be validated: Pyro's validation is off, or its distribution was
    made with validate_args=False."""

    def off(name: str) -> bool:
        if not user_validates():
            return True
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(True):
                site = poutine.trace(lambda: program.call("model", batch)).get_trace().nodes[name]
        except Exception:  # refused by Pyro itself
            return False
        return getattr(innermost(site["fn"]), "_validate_args", True) is False

    return off


def _log_probs(t: Traces, enumerated: tuple[str, ...], gaps: Collection[str]) -> None:
    for trace, part in ((t.p, "model"), (t.q, "guide")):
        sites = {n: s for n, s in sample_sites(trace).items() if n not in enumerated}
        try:
            trace.compute_log_prob(site_filter=lambda n, _, sites=sites: n in sites)
        except Exception as e:
            failed = next(n for n, s in sites.items() if "log_prob" not in s)
            raise PpgenError(
                f"log_prob at the site {failed!r} of the {part} failed: {_first_line(e.__cause__ or e)}; "
                f"look at its shapes ({shape_table(trace)})"
            ) from e
        for name, site in sites.items():
            bad = bad_number(site["log_prob"])
            if bad == "-inf" and enumerated:  # of a value that is summed over, which may have no share in the sum
                continue
            if bad == "-inf":
                log.warning(
                    "log_prob at the site %r of the %s is -inf on the first batch, with values from %s: such steps are "
                    "left out; look at the support, and at the scale of the data", name, part, _extent(site["value"]),
                )  # fmt: skip
            elif bad and gaps and name in t.q.nodes and bool(site["value"].isnan().any()):
                raise PpgenError(
                    f"the guide draws nan for {name!r}, and {', '.join(map(repr, gaps))}, which it may read, has "
                    "missing cells; fill them in in the guide (x.nan_to_num()), or take one that reads no column "
                    "(--guide AutoNormal)"
                )
            elif bad:
                raise PpgenError(
                    f"log_prob at the site {name!r} of the {part} is {bad} on the first batch, with values from "
                    f"{_extent(site['value'])}; look at that site's parameters and at the scale of the data"
                )


def bad_number(x: Tensor) -> str:
    """'nan', 'inf' or '-inf' where a log-probability has one, else ''."""
    if torch.isfinite(x).all():
        return ""
    return "nan" if torch.isnan(x).any() else ("inf" if (x == math.inf).any() else "-inf")


def _extent(value: Tensor) -> str:
    v = value.detach().double()
    return f"{v.min().item():.4g} to {v.max().item():.4g}"


def _gradients(program: Program, t: Traces) -> None:
    loss = sum(s["fn"].log_prob(s["value"]).sum() for trace in t for s in sample_sites(trace, factors=True).values())
    guides = (part._autoguide for part in program.inner_programs if part.fixed_rows)
    unused = {p for guide in guides if guide is not None for p in guide.parameters()}
    parameters = {n: p for n, p in program.named_parameters() if p.requires_grad and p not in unused}
    if not parameters:
        log.warning(
            "%s has no parameters to learn: its ELBO is computed at each step, and nothing changes; make them "
            "torch.nn.Parameter, pyro.param or PyroParam, or give the program a guide that has some (--guide "
            "AutoNormal)", program.name,
        )  # fmt: skip
        return
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise PpgenError(
            f"no parameter of {program.name} reaches a site's log_prob; is the model run under no_grad, or detached?"
        )
    try:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    except RuntimeError as e:
        raise PpgenError(
            f"{program.name} has no gradient: {_first_line(e)}; look for what is written in place, and for a "
            "distribution whose log_prob cannot be differentiated"
        ) from e
    replaced = program._autoguide is not None and type(program).guide is not Program.guide  # its parameters rest
    for name, g in zip(parameters, gradients, strict=True):
        if g is None and not replaced:
            log.warning(
                "the parameter %r of %s gets no gradient in the first run and stays as it is: no site depends on it; "
                "use it, remove it, or freeze it with requires_grad_(False)", _parameter_name(name), program.name,
            )  # fmt: skip


def _parameter_name(name: str) -> str:
    """A parameter's name as the user wrote it: pyro.param sites have their own."""
    return name.removeprefix("param:").replace("/", ".") if name.startswith("param:") else name


# -- minibatches -------------------------------------------------------------------------------------


def _reads_rows(
    program: Program, structure: Structure, t: Traces, name: str, batch: Mapping[str, Any], rows: tuple[str, ...]
) -> bool:
    """Whether a factor is another one on fewer rows, at the same global latents."""
    held = {n: t.p.nodes[n]["value"] for n in structure.globals}
    fewer = data_module.take(batch, slice(1, None), rows)
    found = []
    for data in (batch, fewer):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                site = run(program, data, latents=held).p.nodes[name]
        except Exception:  # written for one number of rows
            return True
        found.append(float(site["fn"].log_prob(site["value"]).sum()))
    return abs(found[0] - found[1]) > 1e-6 * abs(found[0])


def _minibatch(
    program: Program, structure: Structure, t: Traces, n: int, batch: Mapping[str, Any], rows: tuple[str, ...]
) -> None:
    batch_size = data_module.n_rows(batch, rows)
    for name in structure.names("observed"):
        if not structure.is_local(name):
            fixed = [(plate, size) for plate, size in plates_of(sample_sites(t.p)[name]) if size in (n, batch_size)]
            if fixed:
                raise PpgenError(
                    f"the plate {fixed[0][0]!r} has {fixed[0][1]} rows whatever the batch; take its size from the "
                    f"column that is passed, as in pyro.plate({fixed[0][0]!r}, len(x))"
                )
            sequential = [f.name for f in sample_sites(t.p)[name]["cond_indep_stack"] if not f.vectorized]
            if sequential:
                raise PpgenError(
                    f"the observed site {name!r} is one step of the sequential plate {sequential[0]!r}, so that a "
                    f"batch of {batch_size} of {n} rows cannot be weighed; leave out batch_size and give that plate "
                    f"subsample_size={batch_size}, or write all rows as one site within `with ppgen.rows(x):`"
                )
            raise PpgenError(
                f"the observed site {name!r} stands in no plate over the rows, so that a batch of {batch_size} of {n} "
                "rows cannot be weighed; write it within `with ppgen.rows(x):`, or leave out batch_size"
            )
    for name in structure.names("factor"):
        if not structure.is_local(name) and _reads_rows(program, structure, t, name, batch, rows):
            raise PpgenError(
                f"the factor {name!r} is a sum over rows in no plate over them, so that a batch of {batch_size} of {n} "
                "rows cannot be weighed; write one term a row within `with ppgen.rows(x):`, or leave out batch_size"
            )
    if shared := [n for n in structure.summed if not structure.is_local(n)]:
        raise PpgenError(
            f"the latent {shared[0]!r} is shared by all rows and summed out, and the sum over its values does not fall "
            f"into batches; leave out batch_size so that all {n} rows are passed"
        )
    auxiliary_local = [s.name for s in structure.sites if s.role == "auxiliary" and structure.is_local(s.name)]
    if program.fixed_rows and (structure.locals or auxiliary_local):
        raise PpgenError(
            f"the latent {(structure.locals or auxiliary_local)[0]!r} has one value a row, and an autoguide learns one "
            "posterior for each of the rows that it was made with; local latents need an amortised guide under "
            f"minibatches: write guide(x), or leave out batch_size so that all {n} rows are passed"
        )


def _weighed_once(structure: Structure, t: Traces, longer: Traces | None, n: int, size: int) -> None:
    """Refuses a program that weighs its batch by N/B itself, by its number of rows or by a constant."""
    more = sample_sites(longer.p) if longer is not None else {}
    for name in filter(structure.is_local, structure.names("observed")):
        site = sample_sites(t.p)[name]
        weights = [torch.as_tensor(s["scale"]) for s in (site, more.get(name, site))]
        if structure.subsampled or weights[0].numel() > 1 or weights[1].numel() > 1:
            continue
        now, then = map(float, weights)
        if math.isclose(now * size, then * (size + 1), rel_tol=1e-5) or math.isclose(now, n / size, rel_tol=1e-5):
            raise PpgenError(
                f"the program weighs {name!r} by {now:.4g}, and a batch of {size} of {n} rows is weighed by "
                f"{n / size:.4g} as well; leave its poutine.scale out, or leave out batch_size"
            )


__all__ = ["Checked", "bad_number", "check", "checked", "columns", "running_of"]
