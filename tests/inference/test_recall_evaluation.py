from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cmrn import CMRN, CMRNConfig, CMRNTokenizer, ExpertConfig
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.inference.recall_evaluation import StoredText, evaluate_with_memory, unstored
from cmrn.memory.entry import Fingerprint, NewRecord
from cmrn.memory.store import MemoryStore
from cmrn.training.metrics import evaluate

KNOWN = [
    f"patient {name} was given {drug} for {illness} and got well"
    for name, drug, illness in zip(
        ["ann", "bob", "cid", "dee"] * 3, ["zinc", "iron", "salt"] * 4, ["gout", "cold"] * 6, strict=True
    )
]
ASKED = [Document("patient eve was given iron for gout and got well", "health"),
         Document("patient bob was given zinc for a cold and got worse", "health")]  # fmt: skip


@pytest.fixture(scope="module")
def reader() -> CMRN:
    tokenizer = CMRNTokenizer.train(KNOWN, 300)
    config = CMRNConfig(vocab_size=tokenizer.vocab_size, d_model=32, head_dim=16, num_blocks=2, temporal_layers=1,
                        memory_dim=16, memory_heads=2, working_memory=8, routing_k=1, gradient_checkpointing=False,
                        experts=(ExpertConfig(name="health", domains=("health",)), ExpertConfig(name="law"))
    )  # fmt: skip
    torch.manual_seed(1)
    return CMRN(config, tokenizer).eval()


def stored(reader: CMRN, folder: Path, texts: Sequence[str], namespaces: Sequence[str] = ()) -> StoredText:
    names = namespaces or ["default"] * len(texts)
    records = [NewRecord(text, np.ones(2, np.float32), namespace=name) for text, name in zip(texts, names, strict=True)]
    with MemoryStore.create(folder, Fingerprint("none", dim=2)) as store:
        if records:
            store.add(records)
        return StoredText.read(reader, store)


def held_out(reader: CMRN, length: int = 8, rows: int = 2) -> EvaluationSet:
    return EvaluationSet.build(ASKED, reader.tokenizer, reader.config.domains, sequence_length=length, batch_size=rows)


def test_text_in_memory_makes_like_text_cheaper_and_without_is_the_plain_evaluation(
    reader: CMRN, tmp_path: Path
) -> None:
    asked = held_out(reader)
    plain = evaluate(reader, asked)
    found = evaluate_with_memory(reader, asked, stored(reader, tmp_path / "m", KNOWN))
    assert found.tokens == plain.tokens
    assert found.without == pytest.approx(plain.bits_per_byte, rel=1e-5)
    assert found.bits_per_byte["mean"] < 0.7 * plain.bits_per_byte["mean"]
    assert found.bits_per_byte.keys() == plain.bits_per_byte.keys()


def test_an_empty_memory_changes_nothing(reader: CMRN, tmp_path: Path) -> None:
    found = evaluate_with_memory(reader, held_out(reader), stored(reader, tmp_path / "m", []))
    assert found.bits_per_byte == pytest.approx(found.without, rel=1e-9)


@pytest.mark.parametrize("length", [2, 3, 5, 64])
def test_the_edges_of_windows_do_not_matter_to_what_is_counted(reader: CMRN, tmp_path: Path, length: int) -> None:
    memory = stored(reader, tmp_path / "m", KNOWN)
    found = evaluate_with_memory(reader, held_out(reader, length, 1), memory)
    wanted = evaluate_with_memory(reader, held_out(reader, 8, 1), memory)
    assert found.without == pytest.approx(wanted.without, rel=1e-4)
    # The mixture's shares are renewed once a window, so the two differ a little.
    assert found.bits_per_byte == pytest.approx(wanted.bits_per_byte, rel=0.2)


def test_an_experts_namespace_is_read_only_where_the_router_chose_the_expert(reader: CMRN, tmp_path: Path) -> None:
    asked = held_out(reader)
    shared = evaluate_with_memory(reader, asked, stored(reader, tmp_path / "a", KNOWN, ["elsewhere"] * len(KNOWN)))
    both = ["health", "law"]
    figures = {}
    for place, name in enumerate(both):
        reader.blocks[-1].router.routing_network.bias_E[:] = torch.tensor([5.0, -5.0])
        memory = stored(reader, tmp_path / name, KNOWN, [name] * len(KNOWN))
        assert set(memory.owned) == {place}
        figures[name] = evaluate_with_memory(reader, asked, memory)
    reader.blocks[-1].router.routing_network.bias_E.zero_()
    assert figures["law"].bits_per_byte == pytest.approx(figures["law"].without, rel=1e-9)
    assert figures["health"].bits_per_byte["mean"] < 0.8 * figures["health"].without["mean"]
    assert shared.bits_per_byte["mean"] < 0.8 * shared.without["mean"]


def test_evaluation_leaves_the_model_as_it_was(reader: CMRN, tmp_path: Path) -> None:
    reader.train()
    evaluate_with_memory(reader, held_out(reader), stored(reader, tmp_path / "m", KNOWN))
    assert reader.training
    reader.eval()


def test_documents_that_stand_in_the_memory_are_left_out() -> None:
    words = [f"word{number}" for number in range(200)]
    text = " ".join(words)
    near = " ".join([*words[:150], *(f"other{number}" for number in range(50))])
    far = " ".join([*(f"new{number}" for number in range(190)), *words[:10]])
    documents = [Document(each) for each in (text, near, far, "")]
    assert [each.text for each in unstored(documents, [text])] == [far, ""]
    assert unstored(documents, []) == tuple(documents)
