from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cmrn.config import ExpertConfig, ExpertType
from cmrn.domain_expert import (
    add_expert,
    insert_expert,
    read_expert,
    remove_expert,
    rename_expert,
    routing_networks,
    silenced,
    write_expert,
)
from cmrn.errors import CheckpointError, UsageError
from cmrn.experts.growth import backbone_fingerprint, group_named, hash_tensors
from cmrn.files import write_folder
from cmrn.model import CMRN
from tests.training.small_run import model_config

TYPES: tuple[ExpertType, ...] = ("general", "symbolic", "pattern", "generative")
PLAIN = tuple(ExpertConfig(name=name) for name in ("one", "two"))
IDS = torch.arange(48).view(2, 24) * 5 % 280


def small(**changes: object) -> CMRN:
    torch.manual_seed(5)
    return CMRN(model_config(**changes)).eval()


def grown(model: CMRN, name: str = "new", seed: int = 1, **fields: object) -> CMRN:
    """The model with an expert whose router rows and weights are not zero, as after training."""
    made = add_expert(model, ExpertConfig.model_validate({"name": name, **fields}), seed=seed)
    with torch.no_grad():
        for network in routing_networks(made):
            network.weight_ER[-1] = torch.linspace(-1, 2, network.weight_ER.shape[1])
            network.bias_E[-1] = 0.5
    return made


def same(first: CMRN, second: CMRN) -> bool:
    return first.config == second.config and hash_tensors(first.state_dict()) == hash_tensors(second.state_dict())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("experts", [PLAIN, None], ids=["plain", "cycled"])
def test_removing_what_was_added_restores_the_model(kind: ExpertType, experts: tuple[ExpertConfig, ...] | None) -> None:
    model = small(experts=experts, num_experts=len(experts or TYPES))
    after = grown(model, type=kind)
    assert not same(model, after)
    assert same(model, remove_expert(after, "new"))
    assert model.config == small(experts=experts, num_experts=len(experts or TYPES)).config


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("k", [1, 2])
def test_a_silenced_expert_leaves_no_trace_in_any_logit(kind: ExpertType, k: int) -> None:
    model = small(routing_k=k)
    after = grown(model, type=kind)
    expected = model(IDS)
    assert not torch.equal(after(IDS).logits, expected.logits)
    with silenced(after, "new"):
        found = after(IDS, labels=IDS)
        first, rest = after(IDS[:, :7]), None
        for token in range(7, IDS.shape[1]):
            rest = after(IDS[:, token : token + 1], states=(rest or first).states)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.routing_weights[..., :-1], expected.routing_weights)
    assert found.routing_weights[..., -1].max() == 0
    assert found.loss is not None
    assert found.loss.isfinite()
    assert rest is not None
    torch.testing.assert_close(rest.logits[:, -1], expected.logits[:, -1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(after(IDS).logits, expected.logits)


def test_a_domain_s_name_stands_for_its_experts_where_no_expert_has_it() -> None:
    model = small()
    assert group_named(model.config, "zoo") == ("zoo",)
    assert group_named(model.config, "animals") == ("zoo",)
    several = grown(grown(model, "law_1", domains=("law",)), "law_2", domains=("law",))
    assert group_named(several.config, "law") == ("law_1", "law_2")
    assert group_named(grown(several, "law").config, "law") == ("law",)
    # An expert that owns more than the domain is not taken away with it.
    both = grown(model, "both", domains=("law", "care"))
    with pytest.raises(UsageError, match="no expert 'law'"):
        group_named(both.config, "law")


def test_the_weights_are_drawn_by_the_seed_or_copied() -> None:
    model = small()
    expert = ExpertConfig(name="new")
    state = torch.get_rng_state()
    first, again, other = (add_expert(model, expert, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    assert not same(first, other)
    copied = add_expert(model, expert, init_from="zoo").state_dict()
    key = "blocks.1.experts.experts.{}.up.weight"
    assert torch.equal(copied[key.format("new")], copied[key.format("zoo")])
    with pytest.raises(UsageError, match="'rest' is a pattern expert"):
        add_expert(model, expert, init_from="rest")


def test_renaming_changes_the_name_alone() -> None:
    model = small()
    renamed = rename_expert(model, "sum", "total")
    assert [expert.name for expert in renamed.config.named_experts] == ["zoo", "total", "rest"]
    assert renamed.config.domains == model.config.domains
    assert torch.equal(renamed(IDS).logits, model(IDS).logits)
    assert same(rename_expert(renamed, "total", "sum"), model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: remove_expert(model, "gone"), "no expert 'gone'"),
        (lambda model: rename_expert(model, "zoo", "SUM"), "share the name 'sum'"),
        (lambda model: rename_expert(model, "zoo", "../zoo"), "names are letters"),
        (lambda model: add_expert(model, ExpertConfig(name="zoo")), "share the name 'zoo'"),
        (lambda model: remove_expert(remove_expert(model, "zoo"), "sum"), "none of 2 can be removed"),
        (lambda model: silenced(model, "zoo", "sum").__enter__(), "fewer would be left"),
        (lambda _: add_expert(small(routing_strategy="hash"), ExpertConfig(name="new")), "hash routing"),
    ],
)
def test_what_cannot_be_is_refused(change: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        change(small())  # type: ignore[operator]


class TestFolder:
    @pytest.mark.parametrize("kind", TYPES)
    def test_export_remove_and_import_give_the_same_bits(self, kind: ExpertType, tmp_path: Path) -> None:
        after = grown(small(experts=PLAIN), type=kind, domains=("law",))
        write_expert(tmp_path / "new", after, "new", memory=b'{"text": "x"}\n')
        base = remove_expert(after, "new")
        found = read_expert(tmp_path / "new", base.config)
        assert found.memory is not None
        assert found.memory.read_bytes() == b'{"text": "x"}\n'
        assert same(insert_expert(base, found), after)

    def test_experts_of_two_checkpoints_of_one_backbone_meet_in_a_third(self, tmp_path: Path) -> None:
        base = small(experts=PLAIN)
        law, care = grown(base, "law", seed=1, type="pattern"), grown(base, "care", seed=2)
        write_expert(tmp_path / "law", law, "law")
        write_expert(tmp_path / "care", care, "care")
        both = insert_expert(insert_expert(base, read_expert(tmp_path / "law", base.config)),
                             read_expert(tmp_path / "care", base.config))  # fmt: skip
        assert [expert.name for expert in both.config.named_experts] == ["one", "two", "law", "care"]
        assert same(remove_expert(both, "care"), law)
        with silenced(both, "care"):
            assert torch.equal(both(IDS).logits, law(IDS).logits)

    def test_another_backbone_is_refused_by_name(self, tmp_path: Path) -> None:
        after = grown(small())
        write_expert(tmp_path / "new", after, "new")
        base = remove_expert(after, "new")
        with torch.no_grad():
            base.embedding.weight[3, 3] += 1e-6
        with pytest.raises(CheckpointError, match="'new' was made for another backbone") as caught:
            insert_expert(base, read_expert(tmp_path / "new", base.config))
        assert str(tmp_path / "new" / "expert.json") in str(caught.value)
        wider = small(d_model=32)
        with pytest.raises(CheckpointError, match="does not fit this model"):
            read_expert(tmp_path / "new", wider.config)

    @pytest.mark.parametrize("name", ["expert.json", "expert.safetensors", "manifest.json"])
    def test_a_changed_file_is_refused_and_named(self, name: str, tmp_path: Path) -> None:
        after = grown(small())
        write_expert(tmp_path / "new", after, "new")
        path = tmp_path / "new" / name
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_expert(tmp_path / "new", after.config)
        assert name in str(caught.value)
        path.unlink()
        with pytest.raises(CheckpointError):
            read_expert(tmp_path / "new", after.config)

    def test_the_experts_of_a_domain_are_shipped_together(self, tmp_path: Path) -> None:
        base = small(experts=PLAIN)
        # Ten, so that an order by name would not be theirs.
        names = [f"law_{place}" for place in range(1, 11)]
        after = base
        for place, name in enumerate(names):
            after = grown(after, name, seed=place, domains=("law",))
        write_expert(tmp_path / "law", after, "law")
        found = read_expert(tmp_path / "law", base.config)
        assert found.name == "law"
        assert [parts.config.name for parts in found.parts] == names
        assert same(insert_expert(base, found), after)
        write_expert(tmp_path / "one", after, "law_3")
        assert read_expert(tmp_path / "one", base.config).name == "law_3"
        other = small(experts=PLAIN, router_span=4)
        with pytest.raises(CheckpointError):
            insert_expert(other, read_expert(tmp_path / "law", other.config))

    @pytest.mark.parametrize(
        "document",
        [
            [],
            {},
            {"format_version": 2, "name": "law", "experts": ["a", "b"]},
            {"format_version": 1, "name": "law; rm", "experts": ["a", "b"]},
            {"format_version": 1, "name": "law", "experts": []},
            {"format_version": 1, "name": "law", "experts": ["a", "../b"]},
            {"format_version": 1, "name": "law", "experts": ["a", "gone"]},
            {"format_version": 1, "name": "law", "experts": 7},
        ],
    )
    def test_a_group_that_lists_what_is_not_there_is_refused(self, document: object, tmp_path: Path) -> None:
        after = small(experts=PLAIN)
        for name in ("a", "b"):
            after = grown(after, name, domains=("law",))
        write_expert(tmp_path / "law", after, "law")
        with write_folder(tmp_path / "hostile") as temporary:
            shutil.copytree(tmp_path / "law", temporary, dirs_exist_ok=True)
            (temporary / "manifest.json").unlink()
            (temporary / "experts.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=r"hostile"):
            read_expert(tmp_path / "hostile", after.config)

    def test_a_model_folder_is_no_expert(self, tmp_path: Path) -> None:
        model = small()
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(CheckpointError, match="not an exported expert"):
            read_expert(tmp_path / "model", model.config)

    def test_the_folder_states_what_it_fits(self, tmp_path: Path) -> None:
        after = grown(small(), domains=("law",))
        write_expert(tmp_path / "new", after, "new")
        document = json.loads((tmp_path / "new" / "expert.json").read_text())
        assert document["expert"] == {"name": "new", "type": "general", "domains": ["law"]}
        assert document["backbone"] == backbone_fingerprint(after.config, after.state_dict())
