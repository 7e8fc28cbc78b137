from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from cmrn import CMRN
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.domain_expert import rename_expert
from cmrn.errors import CheckpointError
from cmrn.inference import analyse, check_comparable, compare_traces, saturation, trace_text
from cmrn.tokenizer import CMRNTokenizer
from cmrn.unseen import Unseen, unowned_share

DOCUMENTS = [
    Document("the cat sat on the mat. " * 9, "math"),
    Document("def f(x): return x + 1\n" * 7, "code"),
    Document("naïve café 猫 and again the cat " * 5, "code"),
    Document("x", "code"),
    Document("def the mat", None),
]


def texts(model: CMRN, documents: list[Document] = DOCUMENTS) -> EvaluationSet:
    assert model.tokenizer is not None
    # Rows longer than any domain: each is read in one lane, as a plain loop reads it.
    return EvaluationSet.build(documents, model.tokenizer, model.config.domains, 4096, 2)


def chosen(model: CMRN, document: Document) -> tuple[list[int], torch.Tensor]:
    """(ids, whether expert e reads token t in block l, (L,T,E)), the document read alone."""
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(document.text)
    with torch.no_grad():
        output = model.eval()(torch.tensor([ids]))
    return ids, torch.stack([each.weights_BTE[0] for each in output.routing]) > 0


def test_it_counts_what_a_plain_loop_counts(model: CMRN) -> None:
    found = analyse(model.train(), texts(model))
    assert model.training
    each = {name: [chosen(model, d) for d in DOCUMENTS if (d.domain or "unlabelled") == name]
            for name in ("math", "code", "unlabelled")}  # fmt: skip
    for domain in found.domains:
        tokens = sum(len(ids) for ids, _ in each[domain.name])
        assert domain.tokens == tokens
        reads_LE = sum(read.sum(1) for _, read in each[domain.name]) / tokens
        torch.testing.assert_close(torch.tensor(domain.chosen_LE), reads_LE.float())
        torch.testing.assert_close(torch.tensor(domain.chosen_E), reads_LE.float().mean(0))
        assert sum(domain.weights) == pytest.approx(1.0, abs=1e-5)
    everything = torch.cat([read for pairs in each.values() for _, read in pairs], 1).double()
    for block, pairs in enumerate(found.co_activation_LEE):
        together = everything[block].T @ everything[block]
        expected = together / together.diagonal()[:, None]
        torch.testing.assert_close(torch.tensor(pairs, dtype=torch.float64), expected)
    occurrences: Counter[int] = Counter()
    reads: dict[int, torch.Tensor] = {}
    for ids, read in (pair for pairs in each.values() for pair in pairs):
        for place, entry in enumerate(ids):
            occurrences[entry] += 1
            reads[entry] = reads.get(entry, torch.zeros(3)) + read[:, place].float().mean(0)
    assert model.tokenizer is not None
    for index, use in enumerate(found.experts):
        total = sum(float(read[index]) for read in reads.values())
        assert use.used == pytest.approx(total / sum(occurrences.values()))
        mean = sum(float(read[index]) ** 2 / occurrences[entry] for entry, read in reads.items()) / total
        assert use.specialisation == pytest.approx(mean)
        ranked = sorted(reads, key=lambda entry: -float(reads[entry][index]) / (occurrences[entry] + 8))
        first = model.tokenizer.decode([ranked[0]])
        assert use.tokens[0].share == pytest.approx(float(reads[ranked[0]][index]) / occurrences[ranked[0]])
        assert first in [token.text for token in use.tokens[:3]]
        assert all(token.count == occurrences[entry] for token, entry in zip(use.tokens, ranked, strict=False)
                   if token.text == model.tokenizer.decode([entry]))  # fmt: skip


def test_passages_lie_in_documents_and_weigh_most(model: CMRN) -> None:
    found = analyse(model, texts(model))
    assert model.tokenizer is not None
    for use in found.experts:
        weights = [passage.weight for passage in use.passages]
        assert weights == sorted(weights, reverse=True)
        assert 0 < len(weights) <= 4
        for passage in use.passages:
            source = [d.text for d in DOCUMENTS if (d.domain or "unlabelled") == passage.domain]
            assert any(passage.text.strip("�") in text for text in source)
    document = DOCUMENTS[0]
    ids = model.tokenizer.encode(document.text)
    with torch.no_grad():
        weights_TE = model.eval()(torch.tensor([ids])).routing_weights[0]
    for index, use in enumerate(found.experts):
        cells = [float(cell[:, index].mean()) for cell in weights_TE.split(32) if len(cell) >= 4]
        mine = [passage.weight for passage in use.passages if passage.domain == "math"]
        assert mine == [pytest.approx(max(cells), abs=1e-5)]


def test_it_scores_what_no_expert_owns(model: CMRN) -> None:
    low, high = (Unseen((1,), (threshold,), 0.95, 64) for threshold in (0.0, 1.0))
    found = analyse(model, texts(model), low)
    assert [domain.unseen for domain in found.domains] == [1.0] * 3
    assert [domain.unseen for domain in analyse(model, texts(model), high).domains] == [0.0] * 3
    assert [domain.unseen for domain in analyse(model, texts(model)).domains] == [None] * 3
    with torch.no_grad():
        assert model.tokenizer is not None
        ids = torch.tensor([model.tokenizer.encode(DOCUMENTS[0].text)])
        expected = unowned_share(model.config, model.eval()(ids).routing)
    assert expected is not None
    scores = {domain.name: domain.unowned for domain in found.domains}
    assert scores["math"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_at_most_so_many_tokens_of_a_domain_are_read(model: CMRN) -> None:
    found = analyse(model, texts(model), max_tokens=10)
    assert {domain.name: domain.tokens for domain in found.domains} == {"math": 10, "code": 10, "unlabelled": 4}


def test_json_is_plain(model: CMRN) -> None:
    document = analyse(model, texts(model)).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document) == {"experts", "domain_specialisation", "domain_weights", "co_activation",
                             "token_specialisation", "unseen", "tokens"}  # fmt: skip


def other_model(model: CMRN) -> CMRN:
    torch.manual_seed(8)
    return CMRN(model.config, model.tokenizer)


def test_a_model_agrees_with_itself_and_with_another_on_what_a_loop_counts(model: CMRN) -> None:
    assert saturation(model, model, texts(model), "itself").blocks == (1.0, 1.0)
    other = other_model(model)
    found = saturation(model, other, texts(model), "other")
    shares = []
    for document in DOCUMENTS:
        (_, here), (_, there) = chosen(model, document), chosen(other, document)
        shares.append((here & there).sum((1, 2)))
    tokens = sum(len(chosen(model, document)[0]) for document in DOCUMENTS)
    torch.testing.assert_close(torch.tensor(found.blocks), sum(shares) / (2.0 * tokens))
    assert found.mean == pytest.approx(sum(found.blocks) / 2)
    assert found.chance == pytest.approx(2 / 3)
    assert found.mean < 0.999


def test_experts_are_the_same_by_name(model: CMRN) -> None:
    renamed = rename_expert(model, "math", "other")
    found = saturation(model, renamed, texts(model), "renamed")
    reads = sum(chosen(model, d)[1].sum(1) for d in DOCUMENTS)
    expected = 1 - reads[:, 0] / reads.sum(1)  # type: ignore[index]
    torch.testing.assert_close(torch.tensor(found.blocks), expected.float())


def test_traces_of_one_text_are_compared(model: CMRN) -> None:
    text = DOCUMENTS[2].text
    trace, again = trace_text(model, text), trace_text(other_model(model), text)
    same = compare_traces(trace, trace, "itself")
    assert (same.changed, same.same_leader, same.saturation.blocks) == ((), 1.0, (1.0, 1.0))
    found = compare_traces(trace, again, "other")
    leaders = [(a.experts[0].name, b.experts[0].name) for a, b in zip(trace.tokens, again.tokens, strict=True)]
    assert [(each.token, each.leader, each.other) for each in found.changed] == [
        (number, *pair) for number, pair in enumerate(leaders) if pair[0] != pair[1]
    ]
    assert found.same_leader == pytest.approx(1 - len(found.changed) / len(leaders))
    assert found.changed
    document = Document(text, "code")
    assert found.saturation.blocks == pytest.approx(
        saturation(model, other_model(model), texts(model, [document]), "").blocks
    )
    assert {each.name: (each.weight, each.other) for each in found.experts} == {
        each.name: (each.weight, {one.name: one.weight for one in again.experts}[each.name]) for each in trace.experts
    }
    lost = compare_traces(trace, replace(again, experts=again.experts[:-1]), "fewer")
    assert [each.name for each in lost.experts if each.other is None] == [again.experts[-1].name]
    assert json.dumps(found.to_json(), allow_nan=False)


def test_models_that_do_not_read_the_same_tokens_are_not_compared(model: CMRN) -> None:
    foreign = CMRN(model.config, CMRNTokenizer.train(["something else entirely"] * 3, 280))
    with pytest.raises(CheckpointError, match=r"there.*tokenizer"):
        check_comparable(model, foreign, "there")
    deeper = CMRN(model.config.model_copy(update={"num_blocks": 3}), model.tokenizer)
    with pytest.raises(CheckpointError, match="3 blocks"):
        check_comparable(model, deeper, "there")
