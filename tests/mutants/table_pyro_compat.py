"""Bugs of the names that a Pyro script takes in place of Pyro's."""

from planting import Mutant

FILE = "tests/test_pyro_compat.py"
TRACED, COMPILED = f"{FILE}::test_traced_steps_are_pyros[{{}}]", f"{FILE}::test_compiled_steps_are_pyros[{{}}]"

MUTANTS: list[Mutant] = [
    Mutant(
        "an_attribute_is_not_looked_at",
        "if (now := container.get(key, MISSING)) is not value and _other(now, value):",
        "if False:",
        TRACED.format("an-attribute-that-changes"),
    ),
    Mutant(
        "only_new_objects_differ",
        "return type(now) is not type(before) or not isinstance(now, SCALARS) or not (now == before or now != now)",
        "return False",
        TRACED.format("an-attribute-that-changes"),
    ),
    Mutant(
        "a_record_outlives_its_parameters",
        "if own.get(name) is not p:",
        "if False:",
        f"{FILE}::test_the_store_is_cleared_between_fits[trace]",
    ),
    Mutant(
        "a_frozen_parameter_moves",
        "if p.requires_grad is not required or _hooked(p):",
        "if _hooked(p):",
        TRACED.format("a-parameter-that-is-frozen"),
    ),
    Mutant(
        "gradients_of_particles_replace_each_other",
        "gathered[id(p)] = p, gathered[id(p)][1] + g if id(p) in gathered else g",
        "gathered[id(p)] = p, g",
        TRACED.format("score-function,-particles"),
    ),
    Mutant(
        "a_penalty_is_lost",
        "p.grad = g.clone() if p.grad is None else p.grad.add_(g)",
        "p.grad = g.clone()",
        f"{FILE}::test_a_gradient_of_ones_own_is_added_to[trace]",
    ),
    Mutant(
        "steps_by_others_are_not_counted",
        "return False\n            fused.layout.count()",
        "return False",
        COMPILED.format("batches-of-two-shapes"),
    ),
    Mutant(
        "the_state_is_not_pyros",
        "o.state[p] = state",
        "pass",
        COMPILED.format("a-closed-over-tensor-that-changes"),
    ),
    Mutant(
        "a_rate_that_does_not_decay",
        'g["lr"] *= g["lrd"] ** steps',
        "pass",
        COMPILED.format("ClippedAdam"),
    ),
    Mutant(
        "a_recording_is_one_call_more",
        "if t._version != version:",
        "if False:",
        f"{FILE}::test_buffers_are_written_as_pyro_does",
    ),
    Mutant(
        "a_record_is_believed",
        "if why or changed:",
        "if changed:",
        f"{FILE}::test_what_cannot_be_recorded_runs_as_in_pyro_and_is_said_once",
    ),
    Mutant(
        "nan_without_a_warning",
        'return all(abs(torch_item(v)) < float("inf") for v in losses)',
        "return True",
        f"{FILE}::test_a_nan_loss_warns_as_in_pyro[trace]",
    ),
]
