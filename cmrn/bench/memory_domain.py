"""A domain never trained on, learnt by memory alone: its text is stored, held-out text of it is read with the store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch

from cmrn.bench.knn_lm import Datastore, Mixture
from cmrn.bench.memory_data import Material
from cmrn.bench.memory_documents import bits, document_nats, hidden_states
from cmrn.bench.memory_figures import Figure
from cmrn.bench.memory_models import Subject
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.inference.recall_evaluation import StoredText, evaluate_with_memory, unstored
from cmrn.inference.recall_following import Following
from cmrn.model import CMRN
from cmrn.training.device import autocast
from cmrn.training.metrics import evaluate

__all__ = ["DOMAIN", "domain_figures"]

DOMAIN = "medical"
ROWS, LENGTH = 16, 1024
OFF, KNN = "ours, memory off", "ours, memory off, kNN-LM"


def domain_figures(subject: Subject, material: Material) -> Iterator[Figure]:
    """Bits per byte of held-out text with the training text as memory and without, kNN-LM, and what reading costs.

    Held-out documents that repeat what is stored are left out.
    """
    model, tokenizer = subject.model, material.tokenizer
    assert isinstance(model, CMRN)
    part = material.text.train[material.text.domains.index(DOMAIN)]
    rows = [part.tokens[first:last].tolist() for first, last in pairwise(part.bounds)]
    texts = tuple(tokenizer.decode(row) for row in rows)
    device = next(model.parameters()).device
    held = [Document(tokenizer.decode(ids), DOMAIN) for ids in material.documents(DOMAIN)]
    documents = unstored(held, texts)
    data = EvaluationSet.build(documents, tokenizer, model.config.domains, LENGTH, ROWS)
    started = time.monotonic()
    evaluate(model, data, None, subject.precision)
    plain = time.monotonic() - started
    stored = StoredText(Following.of(rows, tokenizer.vocab_size).to(device), {}, texts)
    found = evaluate_with_memory(model, data, stored, bfloat16=subject.precision == "bfloat16")
    told = {"documents": len(documents), "stored_tokens": sum(map(len, rows))}
    name = f"{DOMAIN}, never trained on, {told['stored_tokens']:,} tokens stored"
    yield Figure("domain", name, "ours", subject.key, found.bits_per_byte[DOMAIN], "bits/byte", "smaller", told)
    yield Figure("domain", name, OFF, subject.key, found.without[DOMAIN], "bits/byte", "smaller", told)
    name = f"{DOMAIN}: time of the evaluation"
    yield Figure("domain", name, "ours", subject.key, found.seconds, "s", "smaller")
    yield Figure("domain", name, OFF, subject.key, plain, "s", "smaller")
    yield _knn(subject, model, material, rows, documents, told)


@torch.inference_mode()
def _knn(
    subject: Subject,
    model: CMRN,
    material: Material,
    rows: Sequence[Sequence[int]],
    documents: Sequence[Document],
    told: dict[str, int],
) -> Figure:
    """kNN-LM over every hidden state of the stored text, at the settings that are best on the very text."""
    store, mixture = Datastore(), Mixture()
    device = next(model.parameters()).device
    ids = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
    starts = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    per_call = ROWS * LENGTH
    with hidden_states(model) as hidden:
        for first in range(0, len(ids) - per_call + 1, per_call):
            ids_BT, documents_BT = (
                torch.from_numpy(each[first : first + per_call].reshape(ROWS, LENGTH)).to(device)
                for each in (ids, starts)
            )
            with autocast(device, subject.precision):
                model(ids_BT, document_ids=documents_BT, use_memory=False)
            follows_BT = documents_BT[:, 1:] == documents_BT[:, :-1]
            store.add(hidden.pop()[:, :-1][follows_BT], ids_BT[:, 1:][follows_BT])
    started = time.monotonic()
    sums, size = dict.fromkeys(mixture.settings, 0.0), 0
    for document in documents:
        tokens = np.array(material.tokenizer.encode(document.text), dtype=np.int64)
        nats = document_nats(model, tokens, subject.precision, mixture=mixture, store=store, unscored=1)
        sums = {setting: sums[setting] + nats.mixed[setting] for setting in sums}
        size += int(material.text.byte_lengths[tokens[1:]].sum())
    best = min(sums, key=lambda setting: sums[setting])
    value = bits(sums[best], size) if size else math.nan
    detail = {**told, "states": len(store), "share": best[0], "temperature": best[1],
              "seconds": time.monotonic() - started}  # fmt: skip
    name = f"{DOMAIN}, never trained on, {told['stored_tokens']:,} tokens stored"
    return Figure("domain", name, KNN, subject.key, value, "bits/byte", "smaller", detail)
