"""Choosing among very many experts in sub-linear time: product keys, and a tree that is searched greedily.

No routing strategy uses them: up to some thousands of experts a block, far beyond what a user has, one matrix product
and a top-k are faster on a CPU and on a GPU, as `cmrn bench experts --routing` prints.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["product_key_choice", "tree_choice"]


def product_key_choice(query_NR: Tensor, keys_2SR: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices_NK, scores_NK) of the k best of S² experts, best first: exactly the top-k of their scores.

    Expert i·S + j has the score ⟨q₁, keys₁ᵢ⟩ + ⟨q₂, keys₂ⱼ⟩, q₁ and q₂ being the query's halves; keys_2SR: (2, S, R/2).
    A pair among the best k has each half among that half's best k, since otherwise k better pairs would share its
    other half; so 2·S + k² scores are enough. Gradient reaches queries and keys through the scores.
    Source: Lample et al. 2019, "Large Memory Layers with Product Keys", section 3.1.
    """
    count = keys_2SR.shape[1]
    halves_2NR = torch.stack(query_NR.chunk(2, -1))
    best_2NK, place_2NK = (halves_2NR @ keys_2SR.transpose(1, 2)).topk(min(k, count), -1)
    pairs_NKK = best_2NK[0][:, :, None] + best_2NK[1][:, None, :]
    scores_NK, pair_NK = pairs_NKK.flatten(1).topk(k, -1)
    wide = best_2NK.shape[-1]
    rows_NK, columns_NK = place_2NK[0].gather(1, pair_NK // wide), place_2NK[1].gather(1, pair_NK % wide)
    return rows_NK * count + columns_NK, scores_NK


def tree_choice(query_NR: Tensor, nodes_VR: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices_NK, scores_NK) of k of 2^depth experts by beam search down a binary tree: the k best nodes of a level.

    nodes_VR: the 2^(depth+1) − 1 nodes' vectors, those of a level after those of the one above, the root first. The
    score of a leaf is the sum of ⟨q, node⟩ along its path, so depth · 2k products are enough. With k
    below a level's width the search is greedy and may miss the best leaves: a tree defines its own choice. Gradient
    reaches queries and nodes.
    """
    depth = (nodes_VR.shape[0] + 1).bit_length() - 2
    beam_NK = query_NR.new_zeros(query_NR.shape[0], 1, dtype=torch.int64)
    scores_NK = query_NR @ nodes_VR[:1].T
    for level in range(1, depth + 1):
        children_NC = torch.stack([2 * beam_NK, 2 * beam_NK + 1], -1).flatten(1)
        vectors_NCR = nodes_VR[children_NC + 2**level - 1]
        reached_NC = scores_NK.repeat_interleave(2, 1) + (vectors_NCR @ query_NR[..., None])[..., 0]
        scores_NK, kept_NK = reached_NC.topk(min(k, reached_NC.shape[1]), -1)
        beam_NK = children_NC.gather(1, kept_NK)
    return beam_NK, scores_NK
