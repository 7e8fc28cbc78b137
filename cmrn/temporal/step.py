"""The gated delta rule for one token: what decoding runs, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gated_delta_rule"]


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.gated_delta_rule` for T = 1, computed in the state's type; o in the type of q.

    The state is read once for k and q together, since S_tᵀ q = α Sᵀ q + (k·q) e with e = β (v − α Sᵀ k). Output and
    state carry gradient; the surprise does not.
    """
    wide = state_BHKV.dtype
    with torch.autocast(q_BTHK.device.type, enabled=False):
        q_BHK, k_BHK, v_BHV, g_BH, beta_BH = (x[:, 0].to(wide) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH))
        alpha_BH11 = g_BH.exp()[..., None, None]
        predicted_BHV, read_BHV = (alpha_BH11 * (torch.stack([k_BHK, q_BHK], -2) @ state_BHKV)).unbind(-2)
        error_BHV = beta_BH[..., None] * (v_BHV - predicted_BHV)
        state_BHKV = torch.addcmul(alpha_BH11 * state_BHKV, k_BHK[..., None], error_BHV[..., None, :])
        o_BHV = torch.addcmul(read_BHV, (q_BHK * k_BHK).sum(-1, keepdim=True), error_BHV)
    return o_BHV[:, None].to(q_BTHK.dtype), state_BHKV, error_BHV.detach().norm(dim=-1)[:, None]
