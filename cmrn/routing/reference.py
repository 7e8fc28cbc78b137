"""The routed mixture as it is defined: every expert reads every token. Slow; the dispatch is tested against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["mixture"]


def mixture(
    x_ND: Tensor, indices_NK: Tensor, gates_NK: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """y_n = Σ_k gate_nk · expert_{index_nk}(x_n), by weighting every expert's output with its gate, 0 if not chosen.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 1. Gradient reaches x, gates and experts.
    """
    chosen_NKE = F.one_hot(indices_NK, len(experts)).to(gates_NK.dtype)
    weights_NE = torch.einsum("nk,nke->ne", gates_NK, chosen_NKE)
    outputs_NED = torch.stack([expert(x_ND) for expert in experts], 1)
    return torch.einsum("ne,ned->nd", weights_NE, outputs_NED)
