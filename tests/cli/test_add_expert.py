from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmrn_cli.main import run
from tests.training.small_run import TRAIN, train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run's checkpoint, which says how it was trained."""
    result = train(tmp_path_factory.mktemp("run"), max_steps=12, checkpoint_every=12, eval_every=100)
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a new domain and of the old ones."""
    folder = tmp_path_factory.mktemp("texts")
    new = [
        {"text": f"few; cat = {word} saw {word};\n" * 40 + str(i)} for i, word in enumerate(["owl", "dog", "hen"] * 7)
    ]
    old = [{"text": document.text * 3, "domain": document.domain} for document in TRAIN]
    for name, records in (("new", new), ("old", old)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in ("new", "old")}


def words(base: Path, texts: dict[str, str], out: Path, *more: str) -> list[str]:
    return ["add-expert", "mixed", "--to", str(base), "--data", texts["new"], "--out", str(out), *more]


def test_add_show_ship_and_remove(base: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture) -> None:
    """The whole life of an expert, by commands alone."""
    from cmrn.experts.growth import hash_tensors
    from cmrn.pretrained import read_model

    grown, shipped, again = (tmp_path / name for name in ("grown", "shipped", "again"))
    line = words(base, texts, grown, "--replay", texts["old"], "--steps", "4", "--keep-threshold", "0.5", "--json")
    assert run(line) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["step"] * 4 + ["done"]
    done = lines[-1]
    assert done["checkpoint"] == str(grown)
    assert set(done["bits_per_byte"]["before"]) == {"animals", "numbers", "mixed", "mean"}
    assert done["bits_per_byte"]["before"].keys() == done["bits_per_byte"]["after"].keys()
    assert done["unchanged_sha256"] is True
    assert done["flops_ratio"] > 0

    assert run(["expert", "ls", "-m", str(grown), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experts"]
    assert [expert["name"] for expert in listed] == ["zoo", "sum", "rest", "mixed"]
    assert listed[-1]["domains"] == ["mixed"]
    assert run(["expert", "show", "mixed", "-m", str(grown)]) == 0
    assert "added for the choice" in capsys.readouterr().out
    assert run(["expert", "ablate", "mixed", texts["new"], "-m", str(grown), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["bits_per_byte"]) == {"with", "without"}

    assert run(["expert", "export", "mixed", str(shipped), "-m", str(grown)]) == 0
    assert run(["expert", "import", str(shipped), "-m", str(base), "--out", str(again)]) == 0
    assert hash_tensors(read_model(again).tensors) == hash_tensors(read_model(grown).tensors)
    assert run(["expert", "rm", "mixed", "-m", str(again), "--yes"]) == 0
    assert hash_tensors(read_model(again).tensors) == hash_tensors(read_model(base).tensors) == done["sha256"]
    assert run(["expert", "rename", "zoo", "animals", "-m", str(grown), "--out", str(tmp_path / "renamed"), "-q"]) == 0
    capsys.readouterr()
    assert run(["expert", "ls", "-m", str(tmp_path / "renamed"), "-q"]) == 0
    assert capsys.readouterr().out.split() == ["animals", "sum", "rest", "mixed"]

    assert run(["expert", "import", str(shipped), "-m", str(tmp_path / "renamed"), "--out", str(tmp_path / "x")]) == 2
    assert run(["expert", "export", "mixed", str(shipped), "-m", str(grown)]) == 2
    weights = shipped / "expert.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert run(["expert", "import", str(shipped), "-m", str(base), "--out", str(tmp_path / "x")]) == 4
    assert "expert.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_several_experts_own_a_domain_and_are_shipped_and_removed_by_its_name(
    base: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    from cmrn.experts.growth import hash_tensors
    from cmrn.pretrained import read_model

    grown, shipped, again, back = (tmp_path / name for name in ("grown", "shipped", "again", "back"))
    line = words(base, texts, grown, "--replay", texts["old"], "--steps", "2", "--keep-threshold", "0.5", "--json")
    assert run([*line, "--experts", "2"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["experts"] == ["mixed_1", "mixed_2"]
    assert done["flops_ratio"] > 0
    model, old = read_model(grown), read_model(base)
    experts = {expert.name: expert for expert in model.config.named_experts}
    assert list(experts) == ["zoo", "sum", "rest", "mixed_1", "mixed_2"]
    assert all(experts[name].domains == ("mixed",) for name in done["experts"])

    assert run(["expert", "ablate", "mixed", texts["new"], "-m", str(grown), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"] == done["experts"]
    assert run(["expert", "export", "mixed", str(shipped), "-m", str(grown), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"] == done["experts"]
    assert run(["expert", "import", str(shipped), "-m", str(base), "--out", str(again)]) == 0
    assert hash_tensors(read_model(again).tensors) == hash_tensors(model.tensors)
    assert run(["expert", "rm", "mixed", "-m", str(again), "--out", str(back)]) == 0
    assert hash_tensors(read_model(back).tensors) == hash_tensors(old.tensors) == done["sha256"]
    capsys.readouterr()
    assert run(["expert", "rm", "mixed_1", "-m", str(again), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"] == ["zoo", "sum", "rest", "mixed_2"]


def test_a_second_expert_of_a_domain_leaves_the_first_as_it_is(
    base: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    from cmrn.experts.growth import hash_tensors
    from cmrn.pretrained import read_model

    assert run(words(base, texts, tmp_path / "first", "--steps", "1", "--json")) == 0
    second = ["add-expert", "more", "--domain", "mixed", "--to", str(tmp_path / "first"), "--data", texts["new"],
              "--steps", "1", "--out", str(tmp_path / "second"), "--json"]  # fmt: skip
    assert run(second) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["experts"] == ["more"]
    assert run(["expert", "rm", "more", "-m", str(tmp_path / "second"), "--yes"]) == 0
    first, left = (hash_tensors(read_model(tmp_path / name).tensors) for name in ("first", "second"))
    assert left == first


def test_what_is_usual_is_kept_by_a_new_name_and_left_behind_by_other_experts(
    base: Path, tmp_path: Path, capsys: Capture
) -> None:
    from cmrn.files import write_folder
    from cmrn.pretrained import read_model, write_model_files
    from cmrn.unseen import UNSEEN, Unseen, read_unseen

    usual, model, place = Unseen((1, 2), (0.5, 0.25), 0.95, 64), read_model(base), tmp_path / "model"
    with write_folder(place) as temporary:
        write_model_files(temporary, model.config, model.tensors, model.tokenizer_json)
        (temporary / UNSEEN).write_text(usual.to_json(), encoding="utf-8")
    assert run(["expert", "rename", "zoo", "beasts", "-m", str(place), "--out", str(tmp_path / "renamed")]) == 0
    assert read_unseen(tmp_path / "renamed") == usual
    assert "left behind" not in capsys.readouterr().err
    assert run(["expert", "rm", "rest", "-m", str(place), "--out", str(tmp_path / "less")]) == 0
    assert read_unseen(tmp_path / "less") is None
    assert "left behind" in capsys.readouterr().err


def test_an_old_domain_that_reads_worse_is_exit_8_and_nothing_is_written(
    base: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmrn.training import row

    monkeypatch.setattr(row, "MARGINS", (-50.0,))
    line = words(base, texts, tmp_path / "out", "--replay", texts["old"], "--steps", "2", "--keep-threshold", "0.0001")
    assert run(line) == 8
    printed = capsys.readouterr()
    assert "before" in printed.out
    assert "animals by" in printed.err
    assert "nothing was written" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_fraction_sets_the_steps_and_no_old_text_is_said(
    base: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    assert run(words(base, texts, tmp_path / "out", "--fraction", "9", "--json")) == 0
    printed = capsys.readouterr()
    done = json.loads(printed.out.splitlines()[-1])
    assert 2 < done["flops_ratio"] <= 9
    assert set(done["bits_per_byte"]["before"]) == {"mixed", "mean"}
    assert "no old text" in printed.err
    second = ["add-expert", "more", "--to", str(tmp_path / "out"), "--data", texts["old"], "--steps", "1",
              "--init-from", "mixed", "--out", str(tmp_path / "two"), "--json"]  # fmt: skip
    assert run(second) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["flops_ratio"] > 0


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--type", "wise"], 2, "no expert type"),
        (["--steps", "1", "--fraction", "0.1"], 2, "both say how long"),
        (["--fraction", "0.0000001"], 2, "does not pay"),
        (["--domain", "no name"], 2, "names are letters"),
        (["--init-from", "gone", "--steps", "1"], 2, "no expert 'gone'"),
        (["--init-from", "rest", "--steps", "1"], 2, "'rest' is a pattern expert"),
        (["--replay", "gone.txt", "--steps", "1"], 2, "no such file"),
        (["--experts", "2", "--init-from", "zoo", "--steps", "1"], 2, "copies of those that read most"),
        (["--experts", "2", "--type", "general", "--steps", "1"], 2, "copies of those that read most"),
        (["--experts", "4", "--steps", "1"], 2, "the model has 3"),
        (["--out", "/dev/null/model", "--steps", "1"], 4, "cannot be written"),
    ],
)
def test_bad_requests(
    base: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture, more: list[str], code: int, said: str
) -> None:
    assert run(words(base, texts, tmp_path / "out", *more)) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_changed_where_it_lies_unasked(base: Path, checkpoint: Path, capsys: Capture) -> None:
    assert run(["expert", "rename", "math", "maths", "-m", str(checkpoint)]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["expert", "rename", "sum", "total", "-m", str(base), "--yes"]) == 2
    assert "is a run's checkpoint" in capsys.readouterr().err
    assert run(["expert", "show", "gone", "-m", str(checkpoint)]) == 2
    assert "math, legal" in capsys.readouterr().err


def test_a_model_that_does_not_say_how_it_was_trained_needs_steps(
    checkpoint: Path, texts: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    assert run(words(checkpoint, texts, tmp_path / "out")) == 2
    assert "--steps" in capsys.readouterr().err
    assert run(words(checkpoint, texts, checkpoint, "--steps", "1")) == 2
    assert "not written over" in capsys.readouterr().err


def test_an_expert_takes_its_part_of_a_memory_along(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    from cmrn.domain_expert import remove_expert
    from cmrn.model import CMRN
    from tests.memory.stores import filled, new

    with filled(tmp_path / "memory", 2) as store:
        store.add([new(7, "a writ", id="w", namespace="legal")])
    model = CMRN.from_pretrained(checkpoint)
    shipped, base = tmp_path / "shipped", tmp_path / "base"
    single = CMRN(model.config.model_copy(update={"routing_k": 1}), model.tokenizer)
    single.load_state_dict(model.state_dict())
    single.save_pretrained(tmp_path / "single")
    remove_expert(single, "legal").save_pretrained(base)
    line = ["expert", "export", "legal", str(shipped), "-m", str(tmp_path / "single")]
    assert run([*line, "--store", str(tmp_path / "memory"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 1
    record = json.loads((shipped / "memory.jsonl").read_text())
    assert (record["text"], record["id"], record["namespace"]) == ("a writ", "w", "legal")
    assert run(["expert", "import", str(shipped), "-m", str(base), "--yes"]) == 0
    assert "cmrn memory populate" in capsys.readouterr().err
    assert [expert.name for expert in CMRN.from_pretrained(base).config.named_experts] == ["math", "legal"]


def test_an_imported_expert_brings_its_memory_and_a_second_export_is_the_same_bytes(
    checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    from cmrn.domain_expert import remove_expert
    from cmrn.memory.store import MemoryStore
    from cmrn.model import CMRN
    from tests.memory.stores import filled, new, vector

    with filled(tmp_path / "memory", 2) as store:
        store.add([new(n, f"writ {n}", id=f"w{n}", namespace="legal", meta={"year": n}) for n in (7, 8)])
    model = CMRN.from_pretrained(checkpoint)
    single = CMRN(model.config.model_copy(update={"routing_k": 1}), model.tokenizer)
    single.load_state_dict(model.state_dict())
    single.save_pretrained(tmp_path / "single")
    remove_expert(single, "legal").save_pretrained(tmp_path / "base")
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "other"
    export = ["expert", "export", "legal"]
    assert run([*export, str(first), "-m", str(tmp_path / "single"), "--store", str(tmp_path / "memory")]) == 0
    taken = ["expert", "import", str(first), "-m", str(tmp_path / "base"), "--store", str(other), "--json"]
    capsys.readouterr()
    assert run([*taken, "--out", str(tmp_path / "grown")]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 2
    assert run([*export, str(second), "-m", str(tmp_path / "grown"), "--store", str(other)]) == 0
    with MemoryStore.open(other) as store:
        assert store.stats().namespaces == {"legal": 2}
        found = store.find("w8", "legal")[0]
        assert found.meta == {"year": 8}
        assert (store.vectors([found.record])[0] == vector(8)).all()
    assert (first / "memory.safetensors").read_bytes() == (second / "memory.safetensors").read_bytes()
    capsys.readouterr()
    # Into a store of another encoder: refused, and neither the memory nor the model is changed.
    from cmrn.memory.entry import Fingerprint

    with MemoryStore.create(tmp_path / "foreign", Fingerprint("another", dim=8)):
        pass
    line = ["expert", "import", str(first), "-m", str(tmp_path / "base"), "--store", str(tmp_path / "foreign")]
    assert run([*line, "--out", str(tmp_path / "never")]) == 4
    assert not (tmp_path / "never").exists()
    capsys.readouterr()
