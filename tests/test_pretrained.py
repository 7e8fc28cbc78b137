from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmrn.config import CMRNConfig, ExpertConfig
from cmrn.errors import CheckpointError
from cmrn.files import MANIFEST, verify_folder, write_folder
from cmrn.model import CMRN
from cmrn.pretrained import load_tensors, read_model, write_model

EXPERTS = (ExpertConfig(name="math", domains=("math",)), ExpertConfig(name="router", type="symbolic"))


def tiny_config(**changes: object) -> CMRNConfig:
    fields = {"vocab_size": 40, "d_model": 16, "head_dim": 8, "experts": EXPERTS, "memory_dim": 16, "memory_heads": 2,
              "num_blocks": 2, "temporal_layers": 1, "working_memory": 4, "router_dim": 8}  # fmt: skip
    return CMRNConfig.model_validate(fields | changes)


def saved(folder: Path, config: CMRNConfig | None = None) -> CMRN:
    model = CMRN(config or tiny_config())
    write_model(folder, model.config, model.state_dict(), None)
    return model


def rewrite(folder: Path, file: str, tensors: dict[str, Tensor]) -> None:
    """Change one file and state its new hash, so that only the tensors are wrong."""
    content = {name: (folder / name).read_bytes() for name in verify_folder(folder).files}
    with write_folder(folder) as temporary:
        for name, data in content.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(data)
        save_file(tensors, temporary / file)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"routing_strategy": "hash"}, {"shared_expert": False, "num_blocks": 1}]
)
def test_saving_and_loading_changes_nothing(changes: dict[str, object], tmp_path: Path) -> None:
    config = tiny_config(**changes)
    model = saved(tmp_path / "model", config)
    files = read_model(tmp_path / "model")
    assert files.config == config
    assert files.tokenizer_json is None
    other = CMRN(config)
    load_tensors(other, files)
    before, after = model.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_each_expert_and_the_router_have_files_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    found = sorted(verify_folder(tmp_path / "model").files)
    assert found == ["backbone.safetensors", "config.json", "experts/math.safetensors", "experts/router.safetensors",
                     "router.safetensors"]  # fmt: skip
    for file, part in [("router", "blocks.0.router."), ("experts/math", "blocks.1.experts.experts.math."),
                       ("experts/router", "blocks.0.experts.experts.router.")]:  # fmt: skip
        names = load_file(tmp_path / "model" / f"{file}.safetensors").keys()
        assert any(name.startswith(part) for name in names)
        assert all(part[9:] in name for name in names)
    assert "embedding.weight" in load_file(tmp_path / "model" / "backbone.safetensors")


def test_the_tokenizer_comes_back_as_written(tmp_path: Path) -> None:
    model = CMRN(tiny_config())
    write_model(tmp_path / "model", model.config, model.state_dict(), '{"ü": 1}')
    assert read_model(tmp_path / "model").tokenizer_json == '{"ü": 1}'


def test_tensors_that_share_memory_or_are_views_are_written_whole(tmp_path: Path) -> None:
    model = CMRN(tiny_config())
    tensors = dict(model.state_dict())
    base = torch.arange(24.0).view(4, 6)
    tensors |= {"embedding.weight": base.T, "final_norm.weight": base[1], "same": base, "again": base}
    write_model(tmp_path / "model", model.config, tensors, None)
    found = read_model(tmp_path / "model").tensors
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_wrong_tensors_are_named_with_their_file_and_nothing_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    file = "experts/math.safetensors"
    tensors = load_file(tmp_path / "model" / file)
    gone, bent, *_ = sorted(tensors)
    tensors["blocks.0.experts.experts.math.spare"] = torch.zeros(1)
    tensors[bent] = tensors[bent][:-1].clone()
    del tensors[gone]
    rewrite(tmp_path / "model", file, tensors)
    model = CMRN(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_tensors(model, read_model(tmp_path / "model"))
    message = str(caught.value)
    assert f"{file}: {gone} is missing" in message
    assert f"{file}: {bent} is (" in message
    assert f"{file}: blocks.0.experts.experts.math.spare is not a tensor of this model" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tensor_in_the_wrong_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    router = load_file(tmp_path / "model" / "router.safetensors")
    rewrite(tmp_path / "model", "router.safetensors", {**router, "embedding.weight": torch.zeros(40, 16)})
    with pytest.raises(CheckpointError, match=r"does not belong in it: embedding\.weight") as caught:
        read_model(tmp_path / "model")
    assert str(caught.value.where).endswith("router.safetensors")


def test_a_manifest_cut_by_one_byte_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    manifest = tmp_path / "model" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not spelled as it was written"):
        read_model(tmp_path / "model")


@given(data=st.data())
def test_a_changed_model_is_refused_and_the_file_named(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model") / "model"
    saved(folder, tiny_config(num_blocks=1))
    name = data.draw(st.sampled_from([*sorted(verify_folder(folder).files), MANIFEST]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_model(folder)
    assert str(folder) in str(caught.value.where)


def test_a_file_with_a_true_hash_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    with write_folder(tmp_path / "bad") as temporary:
        (temporary / "experts").mkdir()
        for name in verify_folder(tmp_path / "model").files:
            (temporary / name).write_bytes((tmp_path / "model" / name).read_bytes())
        (temporary / "backbone.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_model(tmp_path / "bad")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_unopened(name: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"pickled weights .* backbone\.safetensors") as caught:
        read_model(tmp_path)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"model_type": "llama", "auto_map": {"AutoModel": "x.Y"}}, "not the configuration of a CMRN"),
        ({"format_version": 99, "model": {}}, "format 99"),
        ({"format_version": 1, "model": {"d_model": "wide"}}, "d_model"),
        ({"format_version": 1, "model": {"auto_map": {}}}, "auto_map"),
        ([], "not the configuration"),
    ],
)
def test_a_foreign_configuration_is_refused(document: object, words: str, tmp_path: Path) -> None:
    with write_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=words):
        read_model(tmp_path / "model")


def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path) -> None:
    with write_folder(tmp_path / "model") as temporary:
        document = {"format_version": 1, "model": tiny_config().model_dump(mode="json")}
        (temporary / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"names no backbone\.safetensors"):
        read_model(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"lacks manifest\.json"):
        read_model(tmp_path / "empty")


def test_a_bare_name_lists_the_runs_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no weights are published") as caught:
        read_model("cmrn-base")
    assert "cmrn train" in str(caught.value.hint)
    (tmp_path / "runs" / "mine" / "checkpoints" / "step-1").mkdir(parents=True)
    with pytest.raises(CheckpointError) as caught:
        read_model("cmrn-base")
    assert str(Path("runs") / "mine") in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="is a run, not a model") as caught:
        read_model("runs/mine")
    assert "step-1" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_model("runs/other")


def test_a_hub_that_cannot_be_reached_is_a_plain_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="the hub did not give it") as caught:
        read_model("someone/some-model")
    assert caught.value.where == "someone/some-model"


def test_a_model_in_the_hubs_cache_of_links_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "model")
    cache = tmp_path / "models--someone--m"
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "experts").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate([*verify_folder(tmp_path / "model").files, MANIFEST]):
        blob = cache / "blobs" / str(number)
        blob.write_bytes((tmp_path / "model" / name).read_bytes())
        (snapshot / name).symlink_to(blob)
    asked = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read_model("someone/m@abc").tensors.keys() == model.state_dict().keys()
    assert asked["repository"] == "someone/m"
    assert asked["revision"] == "abc"
    (cache / "blobs" / "0").write_bytes(b"partial")
    with pytest.raises(CheckpointError, match="is corrupt"):
        read_model("someone/m@abc")
