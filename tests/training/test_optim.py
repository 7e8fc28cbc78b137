from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cmrn.config import ExpertConfig
from cmrn.errors import CheckpointError
from cmrn.model import CMRN
from cmrn.training.muon import Muon, orthogonalise
from cmrn.training.optim import OptimizerSet, parameter_groups
from tests.training.small_run import model_config, training_config

SHAPES = [(8, 24), (24, 8), (8, 24), (16, 16), (5, 3)]


def parameters(seed: int) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def set_gradients(values: list[nn.Parameter], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for value in values:
        value.grad = torch.randn(value.shape, generator=draw)


def test_muon_moves_as_torchs_does() -> None:
    ours, theirs, start = parameters(1), parameters(1), parameters(1)
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        mine.step()
        reference.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        moved = (other - first).norm()
        assert moved > 0.02
        assert (one - other).norm() < 0.02 * moved


def test_orthogonalised_matrices_keep_their_directions_and_lose_their_lengths() -> None:
    x = (
        torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    y = orthogonalise(x).float()
    lengths = torch.linalg.svdvals(y)
    assert lengths.min() > 0.6
    assert lengths.max() < 1.3
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    aligned = u.mT @ y @ vh.mT
    assert (aligned - torch.diag_embed(torch.diagonal(aligned, dim1=1, dim2=2))).abs().max() < 0.05
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.bfloat16))


def test_a_parameter_without_gradient_stays() -> None:
    values = parameters(2)
    before = [value.detach().clone() for value in values]
    set_gradients(values, 0)
    values[0].grad = None
    Muon(values, lr=0.1, weight_decay=0.1).step()
    assert torch.equal(values[0], before[0])
    assert not torch.equal(values[1], before[1])


def test_matrices_are_the_linear_maps_of_blocks_and_all_parameters_are_in_one_group() -> None:
    kinds = ("general", "symbolic", "pattern", "generative")
    experts = tuple(ExpertConfig(name=kind, type=kind) for kind in kinds)
    model = CMRN(model_config(experts=experts, tie_embeddings=False))
    matrices, others = parameter_groups(model, training_config(muon_learning_rate=0.5))
    names = dict(model.named_parameters())
    assert matrices.parameters.keys() | others.parameters.keys() == names.keys()
    assert not matrices.parameters.keys() & others.parameters.keys()
    assert all(names[name].dim() == 2 and min(names[name].shape) >= 8 for name in matrices.parameters)
    for part in ("temporal", "memory.query", "experts.experts.symbolic.up", "experts.experts.pattern.down"):
        assert any(part in name for name in matrices.parameters), part
    forbidden = ("embedding", "head", "router", "norm", "conv", "ngram", "bias", "decay", "beta", "rate", "null_key")
    assert not [name for name in matrices.parameters for part in forbidden if part in name.removesuffix(".weight")]
    assert any(name.endswith("experts.shared.up.weight") for name in matrices.parameters)
    assert (matrices.optimizer, matrices.learning_rate, matrices.weight_decay) == ("muon", 0.5, 0.1)
    assert (others.optimizer, others.learning_rate, others.weight_decay) == ("adamw", 1e-2, 0.0)
    plain, _ = parameter_groups(model, training_config(optimizer="adamw", muon_learning_rate=0.5))
    assert (plain.optimizer, plain.learning_rate) == ("adamw", 1e-2)


def test_frozen_parameters_are_in_no_group() -> None:
    model = CMRN(model_config())
    model.embedding.weight.requires_grad_(False)
    groups = parameter_groups(model, training_config())
    assert not any("embedding.weight" in group.parameters for group in groups)


def steps(model: CMRN, optimizers: OptimizerSet, seeds: range) -> None:
    for seed in seeds:
        draw = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizers.step(0.5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_saved_as_tensors_goes_on_bit_for_bit(optimizer: str) -> None:
    torch.manual_seed(0)
    model, config = CMRN(model_config()), training_config(optimizer=optimizer)
    optimizers = OptimizerSet(parameter_groups(model, config))
    steps(model, optimizers, range(3))
    middle = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in optimizers.tensors().items()}
    steps(model, optimizers, range(3, 6))

    other = CMRN(model_config())
    other.load_state_dict(middle)
    resumed = OptimizerSet(parameter_groups(other, config))
    resumed.load(state)
    steps(other, resumed, range(3, 6))
    expected: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_a_state_of_another_model_is_refused() -> None:
    optimizers = OptimizerSet(parameter_groups(CMRN(model_config()), training_config()))
    with pytest.raises(CheckpointError, match="belongs to no parameter"):
        optimizers.load({"blocks.9.gone.exp_avg": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"embedding.weight.exp_avg is \(3,\)"):
        optimizers.load({"embedding.weight.exp_avg": torch.zeros(3)})
