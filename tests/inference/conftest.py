from __future__ import annotations

import pytest
import torch

from cmrn import CMRN, CMRNConfig, CMRNTokenizer, ExpertConfig

TEXTS = ["the cat sat on the mat. ", "naïve café, 猫と犬 😀. ", "def f(x):\n    return x + 1\n"] * 8


@pytest.fixture(scope="session")
def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train(TEXTS, 300)


@pytest.fixture(scope="session")
def model(tokenizer: CMRNTokenizer) -> CMRN:
    """Small, untrained, and with dropout, so that a forgotten eval() shows."""
    config = CMRNConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        head_dim=16,
        num_blocks=2,
        temporal_layers=1,
        memory_dim=16,
        memory_heads=2,
        working_memory=8,
        gradient_checkpointing=False,
        experts=(
            ExpertConfig(name="math", domains=("math",)),
            ExpertConfig(name="code", type="pattern", domains=("code", "shell")),
            ExpertConfig(name="logic", type="symbolic"),
        ),
        dropout=0.2,
    )
    torch.manual_seed(3)
    return CMRN(config, tokenizer).train()
