"""Six small made-up domains, laid out as the shared data is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

from cmrn.bench.text import DOMAINS

VOCABULARY = 320
TINY = (
    f"model.vocab_size={VOCABULARY}", "model.d_model=32", "model.num_blocks=2", "model.memory_blocks=[1]",
    "model.head_dim=16", "model.expert_hidden=32", "model.memory_dim=32", "model.memory_heads=2",
    "model.working_memory=8", "model.num_experts=4", "training.max_steps=4", "training.sequence_length=32",
    "training.batch_size=2", "training.warmup_steps=1",
)  # fmt: skip


def write_corpora(root: Path) -> Path:
    """The folder that holds corpora/<domain>/{train,valid}.jsonl.gz; each domain has words of its own."""
    generator = random.Random(0)
    for domain in DOMAINS:
        folder = root / "corpora" / domain
        folder.mkdir(parents=True)
        words = [f"{domain[:2]}{index}é" for index in range(20)]
        for part, count in (("train", 12), ("valid", 3)):
            texts = [" ".join(generator.choices(words, k=generator.randint(2, 60))) for _ in range(count)]
            lines = "".join(json.dumps({"text": text, "domain": domain}) + "\n" for text in texts)
            (folder / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return root
