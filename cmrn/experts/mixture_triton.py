"""The routed mixture on CUDA, forward and backward: a fixed number of launches, no host in between.

Forward: sort the pairs, gather rows, project up and apply the inner function and the gate, project down, add up each
token's choices. Backward runs the same way back. A gate's gradient, ⟨expert(x), dy⟩, is taken as ⟨h, dy W_down⟩, so no
expert's output is kept (Guo et al. 2025, "SonicMoE", section 3). Differs: the gate multiplies h in the forward pass
already, so that W_down's gradient needs no product of its own with it. A weight's gradient is computed beside a pass
over memory: W_down's beside the inner functions' gradient, W_up's beside the sum over a token's choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmrn.experts.latent_triton import Latents, sample, sample_back
from cmrn.experts.products_triton import project_rows, weight_gradient
from cmrn.experts.symbolic_triton import chain, chain_back
from cmrn.experts.units_triton import PATTERN, Kinds, inner_back, project_up
from cmrn.experts.weights_triton import stack
from cmrn.routing.dispatch_triton import Plan, combine_rows, empty_plan, gather_rows, make_plan, sum_choices
from cmrn.together import Together

__all__ = ["Units", "mixture"]


@dataclass(frozen=True)
class Units:
    """What the experts consist of, in order; what is None belongs to a type that nobody has.

    ups, downs: (2F,D) and (D,F) of each expert. log_sigma_GF: of the generative ones. premises, conjunction, strength:
    of the symbolic ones, see `symbolic_triton.chain`. table_2E: int32, each expert's kind and its place among its like.
    """

    ups: list[Tensor]
    downs: list[Tensor]
    table_2E: Tensor
    kinds: Kinds
    log_sigma_GF: Tensor | None = None
    premises: Tensor | None = None
    conjunction: Tensor | None = None
    strength: Tensor | None = None


def mixture(
    x_ND: Tensor, context_ND: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, units: Units,
    real_N: Tensor | None, seed: Tensor | None, stream_ND: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y_ND = Σ_k gate · expert(x), mean latent divergence): `cmrn.routing.reference.mixture` in few launches.

    stream_ND: what y is added to, and whose type it then has; the sum goes there from float32.

    Products run in the type of x, sums in float32. context_ND is what pattern experts read in place of x. real_N: bool,
    the tokens whose divergence counts. seed: int64 (1,), whence generative experts draw noise; None for their mean.
    Gradient reaches x, context, gates, stream and all of `units` that require it; a frozen weight's is not computed.
    """
    kinds = units.kinds
    y_ND, latent, *_ = torch.ops.cmrn.mixture(
        x_ND, context_ND, indices_NK, gates_NK, units.ups, units.downs, units.log_sigma_GF, units.premises,
        units.conjunction, units.strength, units.table_2E, real_N, seed,
        [kinds.pattern, kinds.generative, kinds.symbolic], torch.is_grad_enabled(), stream_ND,
    )  # fmt: skip
    return y_ND, latent


@torch.library.custom_op("cmrn::mixture", mutates_args=())
def _mixture(
    x_ND: Tensor, context_ND: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, ups: list[Tensor],
    downs: list[Tensor], log_sigma_GF: Tensor | None, premises: Tensor | None, conjunction: Tensor | None,
    strength: Tensor | None, table_2E: Tensor, real_N: Tensor | None, seed: Tensor | None, kinds: list[bool],
    save: bool, stream_ND: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    plan = make_plan(indices_NK, len(ups))
    up, down = stack(ups, x_ND.dtype), stack(downs, x_ND.dtype)
    context_ND = None if context_ND is None else context_ND.contiguous()
    x_MD = gather_rows(x_ND.contiguous(), context_ND, plan, table_2E, PATTERN.value, x_ND.dtype)
    ab_MF, gh_MF = project_up(x_MD, up, gates_NK, plan, table_2E, Kinds(*kinds))
    latent, scale = gates_NK.new_zeros(()), gates_NK.new_empty(1)
    if log_sigma_GF is not None:
        latent, scale = sample(ab_MF, gh_MF, gates_NK, Latents(log_sigma_GF, seed, real_N), plan, table_2E)
    if premises is not None and conjunction is not None and strength is not None:
        chain(ab_MF, gh_MF, gates_NK, (premises, conjunction, strength), plan, table_2E)
    stream_ND = None if stream_ND is None else stream_ND.contiguous()
    y_ND = combine_rows(project_rows(gh_MF, down, plan, transposed=True), plan.place_NK, stream_ND)
    if not save:
        return y_ND, latent, []
    return y_ND, latent, [up, down, x_MD, ab_MF, gh_MF, scale, plan.pair_M, plan.place_NK, plan.expert_Q, plan.start_E]


@_mixture.register_fake
def _(
    x_ND: Tensor, context_ND: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, ups: list[Tensor],
    downs: list[Tensor], log_sigma_GF: Tensor | None, premises: Tensor | None, conjunction: Tensor | None,
    strength: Tensor | None, table_2E: Tensor, real_N: Tensor | None, seed: Tensor | None, kinds: list[bool],
    save: bool, stream_ND: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    y_ND, latent = (x_ND if stream_ND is None else stream_ND).new_empty(x_ND.shape), gates_NK.new_empty(())
    if not save:
        return y_ND, latent, []
    plan, hidden = empty_plan(indices_NK, len(ups)), downs[0].shape[1]
    rows = plan.pair_M.shape[0]
    up, down = (x_ND.new_empty(len(each), *each[0].shape) for each in (ups, downs))
    kept = [x_ND.new_empty(rows, width) for width in (x_ND.shape[1], 2 * hidden, hidden)]
    kept = [up, down, *kept, gates_NK.new_empty(1)]
    return y_ND, latent, [*kept, plan.pair_M, plan.place_NK, plan.expert_Q, plan.start_E]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    _, context_ND, indices_NK, gates_NK, ups, _, *parts, table_2E, real_N, seed, kinds, _, stream_ND = inputs
    ctx.save_for_backward(indices_NK, gates_NK, *parts, table_2E, real_N, seed, *output[2])
    ctx.kinds, ctx.dtype, ctx.apart, ctx.added = kinds, ups[0].dtype, context_ND is not None, stream_ND is not None
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dy_ND: Tensor | None, dlatent: Tensor | None, _: Any) -> tuple[Any, ...]:
    indices_NK, gates_NK, *parts, table_2E, real_N, seed = ctx.saved_tensors[:9]
    kept, needs_ups, needs_downs = list(ctx.saved_tensors[9:]), ctx.needs_input_grad[4], ctx.needs_input_grad[5]
    if dy_ND is None:
        dy_ND = kept[2].new_zeros(indices_NK.shape[0], kept[2].shape[1])
    dx_ND, dcontext_ND, dgates_NK, dup, ddown, *dparts = torch.ops.cmrn.mixture_backward(
        dy_ND, dlatent, indices_NK, gates_NK, *parts, table_2E, real_N, seed, kept, ctx.kinds, ctx.apart, needs_ups,
        needs_downs, ctx.dtype,
    )  # fmt: skip
    dparts = [None if part is None else gradient for part, gradient in zip(parts, dparts, strict=True)]
    weights = _spread(dup, needs_ups), _spread(ddown, needs_downs)
    others = *weights, *dparts, None, None, None, None, None, dy_ND if ctx.added else None
    return dx_ND, dcontext_ND if ctx.apart else None, None, dgates_NK, *others


def _spread(gradient: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """Each weight's part of a stacked gradient, None for those that need none."""
    parts = iter(gradient.unbind(0))
    return [next(parts) if need else None for need in needed]


torch.library.register_autograd("cmrn::mixture", _gradient, setup_context=_keep)


@torch.library.custom_op("cmrn::mixture_backward", mutates_args=())
def _mixture_backward(
    dy_ND: Tensor, dlatent: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, log_sigma_GF: Tensor | None,
    premises: Tensor | None, conjunction: Tensor | None, strength: Tensor | None, table_2E: Tensor,
    real_N: Tensor | None, seed: Tensor | None, kept: list[Tensor], kinds: list[bool], apart: bool,
    needs_ups: list[bool], needs_downs: list[bool], dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    up, down, x_MD, ab_MF, gh_MF, scale, pair_M, place_NK, expert_Q, start_E = kept
    plan = Plan(pair_M, place_NK, expert_Q, start_E, pair_M.shape[0] // expert_Q.shape[0])
    dy_MD = gather_rows(dy_ND.contiguous(), None, plan, table_2E, None, x_MD.dtype)
    dh_MF = project_rows(dy_MD, down, plan, transposed=False)
    dup, ddown = (
        torch.empty(sum(needed), *stacked.shape[1:], dtype=dtype, device=stacked.device)
        for needed, stacked in ((needs_ups, up), (needs_downs, down))
    )
    together = Together()

    def through_units() -> tuple[Tensor, Tensor, list[Tensor]]:
        """(dab, dots, gradients of the other parts): passes over memory, which a weight's gradient runs beside."""
        dab_MF, dots = inner_back(dh_MF, ab_MF, gates_NK, plan, table_2E, Kinds(*kinds))
        dparts = [dots.new_empty(0) for _ in range(4)]
        if log_sigma_GF is not None:
            share = torch.zeros_like(scale) if dlatent is None else scale * dlatent
            latents = Latents(log_sigma_GF, seed, real_N)
            dparts[0] = sample_back(dh_MF, ab_MF, dab_MF, dots, gates_NK, share, latents, plan, table_2E)
        if premises is not None and conjunction is not None and strength is not None:
            rules = premises, conjunction, strength
            dparts[1:] = chain_back(dh_MF, ab_MF, dab_MF, dots, gates_NK, rules, plan, table_2E)
        return dab_MF, dots, dparts

    dab_MF, dots, dparts = together(
        dy_MD.device, through_units, lambda: weight_gradient(dy_MD, gh_MF, plan, needs_downs, ddown)
    )
    dx_MD = project_rows(dab_MF, up, plan, transposed=False)
    dx_ND, dcontext_ND, dgates_NK = together(
        dy_MD.device,
        lambda: sum_choices(dx_MD, dots, place_NK, indices_NK, table_2E, PATTERN.value if apart else None),
        lambda: weight_gradient(dab_MF, x_MD, plan, needs_ups, dup),
    )
    dcontext_ND = dx_ND.new_empty(0) if dcontext_ND is None else dcontext_ND
    return [dx_ND, dcontext_ND, dgates_NK, dup, ddown, *dparts]


@_mixture_backward.register_fake
def _(
    dy_ND: Tensor, dlatent: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, log_sigma_GF: Tensor | None,
    premises: Tensor | None, conjunction: Tensor | None, strength: Tensor | None, table_2E: Tensor,
    real_N: Tensor | None, seed: Tensor | None, kept: list[Tensor], kinds: list[bool], apart: bool,
    needs_ups: list[bool], needs_downs: list[bool], dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    dx_ND = kept[2].new_empty(dy_ND.shape)
    dup = dy_ND.new_empty(sum(needs_ups), *kept[0].shape[1:], dtype=dtype)
    ddown = dy_ND.new_empty(sum(needs_downs), *kept[1].shape[1:], dtype=dtype)
    dcontext_ND = kept[2].new_empty(dy_ND.shape if apart else 0)
    parts = (log_sigma_GF, premises, conjunction, strength)
    dparts = [gates_NK.new_empty(0 if part is None else part.shape, dtype=torch.float32) for part in parts]
    return [dx_ND, dcontext_ND, gates_NK.new_empty(gates_NK.shape, dtype=torch.float32), dup, ddown, *dparts]
