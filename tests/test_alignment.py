from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.alignment import align, document_places

rows = st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=12)


@given(row=rows, carried=st.none() | st.integers(0, 2), position=st.integers(0, 5))
def test_rows_are_as_if_padding_had_never_been(row: list[tuple[bool, int]], carried: int | None, position: int) -> None:
    mask_BT, ids_BT = torch.tensor([[r for r, _ in row]]), torch.tensor([[d for _, d in row]])
    carried_B = None if carried is None else torch.tensor([carried])
    position_B = torch.tensor([0 if carried is None else position])
    aligned, document_B = align(mask_BT, ids_BT, carried_B, 1, len(row))
    places_BT, next_B = document_places(aligned.segments, position_B, len(row))

    real = [document for is_real, document in row if is_real]
    before, place = carried, int(position_B)
    starts, places = [], []
    for document in real:
        start = before is not None and document != before
        place = 0 if start else place
        starts.append(start)
        places.append(place)
        before, place = document, place + 1
    count = len(real)
    assert aligned.apply(ids_BT)[0, :count].tolist() == real
    assert aligned.segments.start_BT[0].tolist() == starts + [False] * (len(row) - count)
    assert places_BT[0, :count].tolist() == places
    assert next_B.tolist() == [place]
    if before is not None:
        assert document_B.tolist() == [before]
    assert torch.equal(aligned.undo(aligned.apply(ids_BT)), ids_BT)
    wide = torch.randn(1, len(row), 3)
    moved = wide if aligned.order_BT is None else wide[:, aligned.order_BT[0]]
    assert torch.equal(aligned.undo(moved), wide)


def test_a_mask_without_padding_moves_nothing() -> None:
    aligned, document_B = align(torch.ones(2, 5), None, None, 2, 5)
    assert aligned.order_BT is None
    assert aligned.segments.real_BT is None
    assert aligned.segments.start_BT is None
    assert document_B is None


def test_a_document_goes_on_from_call_to_call() -> None:
    _, document_B = align(None, torch.tensor([[3, 3, 4]]), None, 1, 3)
    assert document_B.tolist() == [4]
    aligned, _ = align(None, torch.tensor([[4, 4, 3]]), document_B, 1, 3)
    assert aligned.segments.start_BT.tolist() == [[False, False, True]]


def test_without_ids_a_row_is_document_zero() -> None:
    aligned, document_B = align(None, None, torch.tensor([0, 2]), 2, 3)
    assert aligned.segments.start_BT.tolist() == [[False] * 3, [True, False, False]]
    assert document_B.tolist() == [0, 0]
