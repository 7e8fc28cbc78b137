"""Single terms without context: which expert reads them, against the domain that a dictionary gives them.

The terms are for measuring alone: nothing is trained on them, or chosen by them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmrn.bench.report import Row
from cmrn.errors import UsageError
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["NEIGHBOURS", "Term", "read_terms", "term_rows", "term_weights"]

DOMAINS = ("math", "medical", "code", "legal")
FILE = "routing/wordnet_domain_terms.jsonl"
AT_ONCE = 256
NEIGHBOURS = 0.590
"""What MiniLM's 15 nearest snippets of the corpora place right, among the four domains."""


@dataclass(frozen=True)
class Term:
    """A term and its domain."""

    text: str
    domain: str


def read_terms(root: Path) -> tuple[Term, ...]:
    """The terms of the four domains under `root`, or its folder `data`.

    Raises:
        UsageError: there is no such file.
    """
    path = next((folder / FILE for folder in (root, root / "data") if (folder / FILE).is_file()), None)
    if path is None:
        raise UsageError("no such file", where=str(root / FILE), hint="--data-root, or CMRN_DATA, names its folder")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return tuple(
        Term(row["term"].replace("_", " "), row["domain"].lower()) for row in rows if row["domain"].lower() in DOMAINS
    )


@torch.no_grad()
def term_weights(model: CMRN, tokenizer: CMRNTokenizer, texts: Sequence[str]) -> Tensor:
    """(N,E) weight of every expert for each text read alone: the mean over blocks and tokens, as `cmrn trace` has."""
    device = next(model.parameters()).device
    model.eval()
    weights = []
    for start in range(0, len(texts), AT_ONCE):
        rows = [tokenizer.encode(text) for text in texts[start : start + AT_ONCE]]
        width = max(1, *map(len, rows))
        ids_BT = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows], device=device)
        real_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        weights_BTE = model(ids_BT, attention_mask=real_BT).routing_weights * real_BT[..., None]
        weights.append(weights_BTE.sum(1) / real_BT.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(weights).cpu()


def term_rows(model: CMRN, terms: Sequence[Term]) -> list[Row]:
    """The share placed right: of all experts, and of those that own one of the four domains.

    Raises:
        UsageError: the model has no tokenizer, or no expert owns one of the four domains.
    """
    if model.tokenizer is None:
        raise UsageError("the model has no tokenizer, so it cannot read terms")
    experts = model.config.named_experts
    missing = [domain for domain in DOMAINS if all(domain not in expert.domains for expert in experts)]
    if missing:
        raise UsageError(f"no expert owns {missing[0]}", hint=f"a model whose experts own {', '.join(DOMAINS)}")
    weights_NE = term_weights(model, model.tokenizer, [term.text for term in terms])
    asked = torch.tensor([any(domain in expert.domains for domain in DOMAINS) for expert in experts])
    rows = []
    for name, scores_NE in (
        ("all experts", weights_NE),
        ("the experts of the four", weights_NE.masked_fill(~asked, -1.0)),
    ):
        best = scores_NE.argmax(1).tolist()
        right = [term.domain in experts[place].domains for term, place in zip(terms, best, strict=True)]
        each = {
            domain: sum(ok for ok, term in zip(right, terms, strict=True) if term.domain == domain)
            / max(1, sum(term.domain == domain for term in terms))
            for domain in DOMAINS
        }
        share = sum(right) / len(right)
        rows.append(
            Row(f"terms placed right, {name}", share, "of terms", "MiniLM's neighbours", NEIGHBOURS, detail=each)
        )
    return rows
