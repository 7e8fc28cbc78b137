from __future__ import annotations

import torch
from torch import Tensor

from cmrn.records import Segments
from cmrn.routing.recent import recent_mean


def by_hand(tags_TR: Tensor, starts: list[int], span: int) -> Tensor:
    """The definition, token by token."""
    rows, total, count = [], torch.zeros_like(tags_TR[0]), 0.0
    for place, tag_R in enumerate(tags_TR):
        decay = 0.0 if place in starts else 1 - 1 / span
        total, count = decay * total + tag_R, decay * count + 1
        rows.append(total / count)
    return torch.stack(rows)


def drawn(length: int) -> Tensor:
    return torch.randn(2, length, 3, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def test_it_is_the_decayed_mean_of_each_document() -> None:
    tags_BTR = drawn(600)
    start_BT = torch.zeros(2, 600, dtype=torch.bool)
    start_BT[0, [0, 5, 300]] = True
    mean_BTR, _ = recent_mean(tags_BTR, None, Segments(start_BT=start_BT), 16)
    torch.testing.assert_close(mean_BTR[0], by_hand(tags_BTR[0], [0, 5, 300], 16), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mean_BTR[1], by_hand(tags_BTR[1], [], 16), rtol=1e-10, atol=1e-10)


def test_read_in_parts_it_is_the_same_and_padding_changes_nothing() -> None:
    tags_BTR = drawn(40)
    whole_BTR, last_BC = recent_mean(tags_BTR, None, Segments(), 8)
    for cut in (1, 17, 39):
        first, sums = recent_mean(tags_BTR[:, :cut], None, Segments(), 8)
        second, sums = recent_mean(tags_BTR[:, cut:], sums, Segments(), 8)
        torch.testing.assert_close(torch.cat([first, second], 1), whole_BTR, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sums, last_BC, rtol=1e-12, atol=1e-12)
    padded = torch.cat([tags_BTR, torch.full((2, 9, 3), 7.0, dtype=torch.float64)], 1)
    real_BT = torch.arange(49).expand(2, -1) < 40
    mean_BTR, sums = recent_mean(padded, None, Segments(real_BT=real_BT), 8)
    torch.testing.assert_close(mean_BTR[:, :40], whole_BTR, rtol=0, atol=0)
    torch.testing.assert_close(sums, last_BC, rtol=1e-12, atol=1e-12)


def test_no_token_sees_a_later_one() -> None:
    tags_BTR = drawn(30).requires_grad_()
    recent_mean(tags_BTR, None, Segments(), 4)[0][:, 11].sum().backward()
    assert tags_BTR.grad is not None
    assert bool((tags_BTR.grad[:, 12:] == 0).all())
    assert bool((tags_BTR.grad[:, :12] != 0).all())
