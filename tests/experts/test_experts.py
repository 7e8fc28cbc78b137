from __future__ import annotations

import typing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import ExpertType
from cmrn.experts import ExpertModule
from cmrn.experts.general import GeneralProcessor
from cmrn.experts.generative import GenerativeUnit
from cmrn.experts.pattern import PatternMatcher
from cmrn.experts.symbolic import SymbolicLogicUnit, both, either
from tests.tolerances import assert_close

TYPES: tuple[ExpertType, ...] = typing.get_args(ExpertType)
each_type = pytest.mark.parametrize("expert_type", TYPES)
degrees = st.floats(0.0, 1.0)


def make_expert(expert_type: ExpertType) -> ExpertModule:
    torch.manual_seed(4)
    return ExpertModule(6, 8, expert_type).double()


def rows(count: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


@each_type
def test_an_expert_maps_each_row_by_itself(expert_type: ExpertType) -> None:
    expert, x_MD = make_expert(expert_type).eval(), rows(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    y_MD, divergence_M = expert(x_MD)
    shuffled, shuffled_divergence = expert(x_MD[order])
    assert_close(shuffled, y_MD[order])
    assert_close(torch.cat([expert(row[None])[0] for row in x_MD]), y_MD)
    assert (divergence_M is None) == (expert_type != "generative")
    if divergence_M is not None:
        assert divergence_M.shape == (9,)
        assert_close(shuffled_divergence, divergence_M[order])


@each_type
@pytest.mark.parametrize("training", [False, True])
def test_no_row_gets_gradient_from_another(expert_type: ExpertType, training: bool) -> None:
    expert, x_MD = make_expert(expert_type).train(training), rows(5).requires_grad_()
    (gradient,) = torch.autograd.grad(expert(x_MD)[0][2].sum(), x_MD)
    assert gradient[2].any()
    assert not gradient[[0, 1, 3, 4]].any()


@each_type
def test_every_weight_gets_gradient(expert_type: ExpertType) -> None:
    expert = make_expert(expert_type)
    expert(rows(50))[0].square().sum().backward()
    for name, parameter in expert.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.flatten(1).any(1).all() if parameter.dim() == 2 else parameter.grad.any(), name


@each_type
def test_gradcheck(expert_type: ExpertType) -> None:
    expert = make_expert(expert_type).eval()
    names, leaves = zip(*expert.named_parameters(), strict=True)

    def run(x_MD: Tensor, *values: Tensor) -> Tensor:
        y_MD, _ = torch.func.functional_call(expert, dict(zip(names, values, strict=True)), (x_MD,))
        return y_MD

    assert torch.autograd.gradcheck(run, (rows(3).requires_grad_(), *leaves), fast_mode=True)


@each_type
def test_no_rows_give_no_rows(expert_type: ExpertType) -> None:
    expert = make_expert(expert_type)
    y_MD, _ = expert(rows(0))
    assert y_MD.shape == (0, 6)
    y_MD.sum().backward()
    assert not expert.up.weight.grad.any()


def test_all_types_share_two_shapes() -> None:
    experts = [make_expert(expert_type) for expert_type in TYPES]
    assert {(tuple(e.up.weight.shape), tuple(e.down.weight.shape)) for e in experts} == {((16, 6), (6, 8))}


def test_general_and_pattern_by_formula() -> None:
    ab = rows(7, 16)
    a, b = ab[:, :8], ab[:, 8:]
    assert_close(GeneralProcessor()(ab)[0], a * a.sigmoid() * b)
    assert_close(PatternMatcher()(ab)[0], a.clamp(min=0) ** 2 / (1 + (-b).exp()))


def test_generative_samples_in_training_and_takes_the_mean_in_evaluation() -> None:
    unit, ab = GenerativeUnit(8).double(), rows(4000, 16)
    a, mean = ab.chunk(2, -1)
    unit.eval()
    assert_close(unit(ab)[0], F.silu(a) * mean)
    unit.train()
    torch.manual_seed(0)
    noise = unit(ab)[0] / F.silu(a) - mean
    sigma = torch.tensor(-2.0).exp()
    assert noise.std().item() == pytest.approx(sigma.item(), rel=0.03)
    assert abs(noise.mean().item()) < 4 * sigma / noise.numel() ** 0.5
    assert not torch.equal(unit(ab)[0], unit(ab)[0])


def test_divergence_is_that_of_torch_distributions() -> None:
    unit, ab = GenerativeUnit(8).double(), rows(5, 16)
    with torch.no_grad():
        unit.log_sigma.copy_(torch.linspace(-2.0, 1.0, 8))
    latent = torch.distributions.Normal(ab[:, 8:], unit.log_sigma.exp())
    expected = torch.distributions.kl_divergence(latent, torch.distributions.Normal(0.0, 1.0)).mean(-1)
    assert_close(unit(ab)[1], expected)
    assert (unit(ab)[1] >= 0).all()


@given(a=degrees, b=degrees)
def test_connectives_stay_in_bounds_and_are_dual(a: float, b: float) -> None:
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    conjunction, disjunction = both(x, y), either(x, y)
    assert -1e-15 <= conjunction <= min(a, b) + 1e-15
    assert max(a, b) - 1e-15 <= disjunction <= 1 + 1e-15
    assert_close(1 - disjunction, both(1 - x, 1 - y))


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
def test_connectives_equal_boolean_ones_on_zero_and_one(a: int, b: int) -> None:
    assert both(torch.tensor(float(a)), torch.tensor(float(b))).item() == (a and b)
    assert either(torch.tensor(float(a)), torch.tensor(float(b))).item() == (a or b)


def logit(degree: Tensor) -> Tensor:
    return degree.clamp(1e-9, 1 - 1e-9).logit()


@given(hidden=st.sampled_from([1, 3, 8, 16, 32, 48]), seed=st.integers(0, 50), scale=st.sampled_from([0.1, 3.0, 100.0]))
def test_output_lies_between_minus_one_and_one(hidden: int, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    unit = SymbolicLogicUnit(hidden).double()
    y_MF, _ = unit(scale * rows(6, 2 * hidden))
    assert y_MF.shape == (6, hidden)
    assert (y_MF.abs() <= 1 + 1e-12).all()


@pytest.mark.parametrize("channel", ["for", "against"])
def test_evidence_only_grows(channel: str) -> None:
    """Where the rules of one channel alone have strength, the output moves to that channel's side and no other."""
    torch.manual_seed(1)
    unit, evidence = SymbolicLogicUnit(16).double(), rows(20, 32)
    with torch.no_grad():
        unit.strength.fill_(-100.0)
        quiet, _ = unit(evidence)
        start = evidence.sigmoid()
        assert_close(quiet, start[:, :16] - start[:, 16:])
        unit.strength[:, slice(0, 16) if channel == "for" else slice(16, 32)] = 2.0
        moved, _ = unit(evidence)
    sign = 1 if channel == "for" else -1
    assert (sign * (moved - quiet) >= -1e-12).all()
    assert (sign * (moved - quiet) > 1e-3).any()


def test_swapping_the_channels_of_all_negates_the_output() -> None:
    """NOT swaps for and against: a unit whose rules are swapped too concludes the opposite."""
    torch.manual_seed(2)
    unit, swapped = SymbolicLogicUnit(16).double(), SymbolicLogicUnit(16).double()
    with torch.no_grad():
        unit.strength.normal_()
        unit.conjunction.normal_()
        swap = torch.arange(32).roll(16)
        heads = torch.cat([swap, swap + 32])
        swapped.selection.copy_(unit.selection[:, swap][:, :, heads])
        swapped.strength.copy_(unit.strength[:, swap])
        swapped.conjunction.copy_(unit.conjunction[:, swap])
    evidence = rows(6, 32)
    assert_close(swapped(evidence.roll(16, -1))[0], -unit(evidence)[0])


@pytest.mark.parametrize("connective", ["AND", "OR"])
@pytest.mark.parametrize("first", [0.0, 1.0])
@pytest.mark.parametrize("second", [0.0, 1.0])
def test_a_hard_rule_is_a_boolean_implication(connective: str, first: float, second: float) -> None:
    """IF p0 AND/OR NOT p1 THEN p2, at full strength: p2 becomes true exactly when the body is."""
    unit = SymbolicLogicUnit(16, steps=1).double()
    with torch.no_grad():
        unit.strength.fill_(-100.0)
        unit.strength[0, 2] = 100.0
        unit.conjunction.fill_(100.0 if connective == "AND" else -100.0)
        unit.selection.fill_(-100.0)
        unit.selection[0, 0, 2] = 100.0
        unit.selection[0, 16 + 1, 32 + 2] = 100.0
    supporting, opposing = torch.zeros(1, 16, dtype=torch.float64), torch.zeros(1, 16, dtype=torch.float64)
    supporting[0, 0], opposing[0, 1] = first, second
    y_MF, _ = unit(logit(torch.cat([supporting, opposing], -1)))
    body = (first and second) if connective == "AND" else (first or second)
    assert y_MF[0, 2].item() == pytest.approx(body, abs=1e-6)


def test_two_steps_chain_two_rules() -> None:
    """IF p0 THEN p1, IF p1 THEN p2: the second conclusion needs the second step."""
    conclusions = []
    for steps in (1, 2):
        unit = SymbolicLogicUnit(16, steps=steps).double()
        with torch.no_grad():
            unit.strength.fill_(-100.0)
            unit.strength[0, 1:3] = 100.0
            unit.selection.fill_(-100.0)
            for premise, rule in ((0, 1), (1, 2)):
                unit.selection[0, premise, [rule, 32 + rule]] = 100.0
        supporting = torch.zeros(1, 32, dtype=torch.float64)
        supporting[0, 0] = 1.0
        y_MF, _ = unit(logit(supporting))
        conclusions.append(round(y_MF[0, 2].item(), 6))
    assert conclusions == [0.0, 1.0]
