"""A run small enough for a test: two domains, an expert for each and one for none, a model of two blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmrn.config import CMRNConfig, ExpertConfig, TrainingConfig
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedDataset
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer
from cmrn.training.progress import EvaluationReport, Notice, StepReport
from cmrn.training.random_state import seed_all
from cmrn.training.trainer import CMRNTrainer, TrainingResult

LENGTH = 32
ANIMALS, NUMBERS = ("cat", "dog", "owl", "fox", "hen"), ("one", "two", "six", "ten", "few")


def documents(first: int, count: int) -> list[Document]:
    found = []
    for index in range(first, first + count):
        animal, number = ANIMALS[index % 5], NUMBERS[index * 2 % 5]
        found.append(Document(f"the {animal} saw a {ANIMALS[index // 5 % 5]}, " * 6 + str(index), "animals"))
        found.append(Document(f"{number} + {NUMBERS[index // 5 % 5]} = {index};\n" * 6, "numbers", source_index=1))
    return found


TRAIN, HELD_OUT = documents(0, 20), documents(100, 4)


@dataclass
class Recorder:
    """A reporter that keeps what it is told."""

    steps: list[StepReport] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def evaluation(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def notice(self, notice: Notice) -> None:
        self.notices.append(notice)


def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train([document.text for document in TRAIN], 280)


def model_config(**changes: object) -> CMRNConfig:
    owners = (ExpertConfig(name="zoo", domains=("animals",)), ExpertConfig(name="sum", domains=("numbers",)))
    experts = (*owners, ExpertConfig(name="rest", type="pattern"))
    fields = {"vocab_size": 280, "d_model": 16, "head_dim": 8, "experts": experts, "memory_dim": 16, "num_blocks": 2,
              "memory_heads": 2, "temporal_layers": 1, "working_memory": 8, "router_dim": 8, "expert_hidden": 16,
              "dropout": 0.1, "gradient_checkpointing": False}  # fmt: skip
    return CMRNConfig.model_validate(fields | changes)


def training_config(**changes: object) -> TrainingConfig:
    fields = {"learning_rate": 1e-2, "batch_size": 4, "max_steps": 8, "sequence_length": LENGTH, "warmup_steps": 2,
              "optimizer": "muon", "precision": "float32", "eval_every": 3, "eval_tokens": 40, "checkpoint_every": 2,
              "keep_checkpoints": 2}  # fmt: skip
    return TrainingConfig.model_validate(fields | changes)


def datasets(words: CMRNTokenizer, config: CMRNConfig, *, carry: bool = False) -> tuple[PackedDataset, EvaluationSet]:
    train = (LaneDataset if carry else PackedDataset).build(TRAIN, words, config.domains, LENGTH, seed=1)
    return train, EvaluationSet.build(HELD_OUT, words, config.domains, LENGTH, 2)


def make_trainer(run: Path | None, reporter: Recorder | None = None, **changes: object) -> CMRNTrainer:
    seed_all(7)
    model = CMRN(model_config(), tokenizer())
    return CMRNTrainer(model, training_config(**changes), run_dir=run, seed=3, reporter=reporter, device="cpu")


def train(
    run: Path | None, *, resume: bool = False, reporter: Recorder | None = None, **changes: object
) -> TrainingResult:
    trainer = make_trainer(run, reporter, **changes)
    data = datasets(tokenizer(), trainer.model.config, carry=trainer.config.carry_states)
    return trainer.train(*data, resume=resume)
