"""What small runs of the memory cases are given: invented texts, questions, and a model of a few thousand weights."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

from cmrn.data.quizzes import QUIZZES
from tests.bench.tiny_text import write_corpora

CHANGES = (
    "model.vocab_size=300", "tokenizer.vocab_size=300", "model.d_model=32", "model.head_dim=16", "model.num_blocks=1",
    "model.memory_blocks=[0]", "model.memory_dim=32", "model.memory_heads=2", "model.expert_hidden=16",
    "model.working_memory=32", "model.episodic_chunk=16", "model.episodic_memory=128", "training.max_steps=2",
    "training.batch_size=2", "training.sequence_length=64", "training.warmup_steps=1", "training.memory_reach=64",
    "training.memory_top_from=1", *(f"data.sources.{place}.limit=2" for place in (6, 7, 8, 9)),
    *(f"data.sources.{6 + i}.path=quiz://{kind}?length=2000" for i, kind in enumerate(QUIZZES)),
)  # fmt: skip


def write_material(root: Path) -> Path:
    """The corpora, with longer books, and a few public questions in their own formats."""
    write_corpora(root)
    generator = random.Random(1)
    words = [f"li{index}é" for index in range(20)]
    for part in ("train", "valid"):
        books = [" ".join(generator.choices(words, k=900)) for _ in range(2)]
        lines = "".join(json.dumps({"text": book, "domain": "literature"}) + "\n" for book in books)
        (root / "corpora/literature" / f"{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    folder = root / "long_context"
    folder.mkdir()
    story = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"
    again = "4 Mary moved to the garden.\n5 Where is Mary? \tgarden\t4\n"
    other = "1 John went to the park.\n2 Where is John?\tpark\t1\n"
    (folder / "qa1_single-supporting-fact_test.txt").write_text(story + again + other)
    records = [[f"key{index}", f"value{index}"] for index in range(5)]
    line = json.dumps({"ordered_kv_records": records, "key": "key3", "value": "value3"}) + "\n"
    (folder / "kv_retrieval_75.jsonl.gz").write_bytes(gzip.compress(2 * line.encode()))
    return root
