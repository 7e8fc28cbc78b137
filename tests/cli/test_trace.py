from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cmrn import CMRN
from cmrn.files import write_folder
from cmrn.inference import Trace, trace_text
from cmrn.pretrained import write_model_files
from cmrn.unseen import UNSEEN, Unseen
from cmrn_cli.main import run
from cmrn_cli.trace_page import page_text
from cmrn_cli.trace_text import own_texts, visible

Capture = pytest.CaptureFixture[str]
HOSTILE = (
    "</script><script>alert(1)</script> \x1b[31m\x1b]0;owned\x07 \u202elaw\u2066 \x9b2J <img src=x onerror=alert(2)>"
    " {{ 7 * 7 }} {% raw %} &lt; \"'` \u200b\u00ad\ufeff \U000e0041 \x00\x08\r\n\tof law é 猫 😀 e\u0301 <!-- ]]> -->"
)
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture
def other(checkpoint: Path, tmp_path: Path) -> Path:
    """A model of the same tokenizer and shape with other weights."""
    import torch

    model = CMRN.from_pretrained(checkpoint)
    torch.manual_seed(5)
    CMRN(model.config, model.tokenizer).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    lines = [
        {"text": "the integral of x is here " * 12, "domain": "math"},
        {"text": "the court of law is there " * 12, "domain": "legal"},
        {"text": HOSTILE, "domain": "<b>\x1b[1m\u202e</b>"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def steers(text: str) -> set[str]:
    """Characters that a terminal or a page would act on rather than show."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") and c not in "\n\t"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text within some of them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.within: dict[str, list[str]] = {"script": [], "style": []}
        self.tokens: list[str] = []
        self.in_text = self.in_token = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self.in_text = self.in_text or given.get("id") == "text"
        if tag in self.within:
            self.within[tag].append("")
        self.in_token = (tag == "i" and self.in_token) or (tag == "span" and self.in_text and given.get("class") != "g")
        if self.in_token and tag == "span":
            self.tokens.append("")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "aside":
            self.in_text = False
        if tag == "span":
            self.in_token = False
        self.open.append("/" + tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.within:
            self.within[self.open[-1]][-1] += data
        if self.in_token and self.in_text:
            self.tokens[-1] += data

    @property
    def data(self) -> dict[str, list[list[int]]]:
        """What the page's script reads."""
        found: dict[str, list[list[int]]] = json.loads(self.within["script"][0])
        return found


def traced(checkpoint: Path, text: str) -> tuple[Trace, str]:
    trace = trace_text(CMRN.from_pretrained(checkpoint), text)
    return trace, page_text("runs/x", text, trace, None, None, ())


class TestPage:
    def test_every_token_is_shown_and_none_is_interpreted(self, checkpoint: Path) -> None:
        trace, text = traced(checkpoint, HOSTILE)
        page = Page(text)
        assert "".join(page.tokens) == visible(HOSTILE)
        assert len(page.tokens) == len(trace.tokens)
        assert not steers(text)
        assert {tag for tag, _ in page.tags} <= {
            "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "code", "main",
            "section", "table", "thead", "tbody", "tr", "th", "td", "button", "svg", "rect", "path", "figure",
            "figcaption", "kbd",
            "noscript", "div", "span", "bdi", "i", "aside", "script", "strong",
        }  # fmt: skip
        assert [given.get("type") for tag, given in page.tags if tag == "script"] == ["application/json", None]
        assert not [name for _, given in page.tags for name in given if name.startswith("on") or name == "style"]
        assert "49" not in re.findall(r"7 \* 7|49", "".join(page.tokens))

    def test_nothing_is_loaded_and_only_its_own_script_may_run(self, checkpoint: Path) -> None:
        _, text = traced(checkpoint, "the law")
        page = Page(text)
        assert not [given for _, given in page.tags for name in given if name in ("src", "href", "srcset", "action")]
        assert "url(" not in text
        assert "@import" not in text
        policy = next(
            given["content"] for _, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"
        )
        assert policy is not None
        assert "default-src 'none'" in policy
        for kind, content in (("style", page.within["style"][0]), ("script", page.within["script"][1])):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy

    def test_the_script_reads_the_figures_of_the_trace(self, checkpoint: Path) -> None:
        trace, text = traced(checkpoint, "the integral\nof the law")
        data = Page(text).data
        assert data["names"] == ["legal", "math"]
        for token, row in zip(trace.tokens, data["tokens"], strict=True):
            assert row[0] == round(100 * token.surprise)
            assert token.unowned is not None
            assert row[1] == round(1000 * token.unowned)
            expected: list[int] = []
            for block in token.blocks:
                expected.append(len(block))
                for each in block:
                    expected += [["legal", "math"].index(each.name), round(1000 * each.weight)]
            assert row[2:] == expected

    def test_ten_thousand_tokens_take_under_five_seconds_and_five_megabytes(self, checkpoint: Path) -> None:
        model = CMRN.from_pretrained(checkpoint)
        assert model.tokenizer is not None
        text = "the <court> of law & 7 " * 1250
        started = time.process_time()
        trace = trace_text(model, text)
        page = page_text("runs/x", text, trace, None, None, ())
        assert time.process_time() - started < 5
        assert len(trace.tokens) > 10_000
        assert len(page.encode()) < 5_000_000

    @pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
    def test_a_browser_runs_it_and_nothing_in_the_text(self, checkpoint: Path, tmp_path: Path) -> None:
        trace, text = traced(checkpoint, HOSTILE)
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--dump-dom", f"file://{tmp_path / 'page.html'}#t3"],
            capture_output=True, timeout=110, check=True,
        )  # fmt: skip
        page = done.stdout.decode()
        assert f"token 3 of {len(trace.tokens)}, event 1" in page
        assert page.count("<script") == 2
        assert "<img" not in page
        assert '<aside id="panel" aria-live="polite">' in page


class TestData:
    def test_json_holds_the_analyses_beside_the_fixed_keys(
        self, checkpoint: Path, records: Path, capsys: Capture
    ) -> None:
        assert run(["trace", "-m", str(checkpoint), "--data", str(records), "--json"]) == 0
        printed = capsys.readouterr().out
        assert printed.isascii()
        document = json.loads(printed)
        assert set(document) == {"schema_version", "experts", "tokens", "events", "unseen", "analyses"}
        assert {expert["name"] for expert in document["experts"]} == {"math", "legal"}
        assert sum(expert["weight"] for expert in document["experts"]) == pytest.approx(1, abs=1e-5)
        analyses = document["analyses"]
        assert analyses["experts"] == ["math", "legal"]
        assert set(analyses["tokens"]) == {"math", "legal", "<b>\x1b[1m\u202e</b>"}
        assert analyses["saturation"] == []

    def test_the_pictures_are_safe(
        self, checkpoint: Path, other: Path, records: Path, capsys: Capture, tmp_path: Path
    ) -> None:
        base = ["trace", "-m", str(checkpoint), "--data", str(records)]
        for more in ([], ["-v"], ["--compare", str(other)], ["--expert", "legal"], ["-q"], ["--expert", "math", "-q"]):
            assert run([*base, *more]) == 0
            shown = capsys.readouterr()
            assert "legal" in shown.out or "-q" in more
            assert not steers(shown.out)
        target = tmp_path / "page.html"
        assert run([*base, "--compare", str(other), "--html", str(target)]) == 0
        assert capsys.readouterr().out.strip() == str(target)
        text = target.read_text(encoding="utf-8")
        assert not steers(text)
        page = Page(text)
        assert not {tag for tag, _ in page.tags} & {"script", "img", "b"}
        assert "Saturation" in text

    def test_one_short_text_is_also_traced_token_by_token(
        self, checkpoint: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        file = tmp_path / "one.txt"
        file.write_text("the law is here", encoding="utf-8")
        assert run(["trace", "-m", str(checkpoint), "--data", str(file), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert "".join(token["text"] for token in document["tokens"]) == "the law is here"
        assert document["analyses"]["tokens"] == {"unlabelled": len(document["tokens"])}
        assert run(["trace", "-m", str(checkpoint), "--data", str(file), "--html", str(tmp_path / "a.html")]) == 0
        assert "co-activation" not in (tmp_path / "a.html").read_text(encoding="utf-8").split("<body>")[0]

    def test_an_expert_s_part(self, checkpoint: Path, records: Path, capsys: Capture) -> None:
        assert run(["trace", "-m", str(checkpoint), "--data", str(records), "--expert", "legal", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["expert"] == {"name": "legal", **document["analyses"]["token_specialisation"]["legal"]}
        assert run(["trace", "-m", str(checkpoint), "--data", str(records), "--expert", "law"]) == 2
        assert "it has math, legal" in capsys.readouterr().err

    def test_a_run_s_earlier_checkpoints_show_saturation(
        self, checkpoint: Path, other: Path, records: Path, capsys: Capture, tmp_path: Path
    ) -> None:
        saved = tmp_path / "run" / "checkpoints"
        saved.mkdir(parents=True)
        for step, source in ((5, other), (10, checkpoint), (20, checkpoint), (30, other)):
            shutil.copytree(source, saved / f"step-{step}")
        (saved / "step-10" / "config.json").write_text("{}", encoding="utf-8")
        assert run(["trace", "-m", str(saved / "step-20"), "--data", str(records), "--json"]) == 0
        printed = capsys.readouterr()
        found = json.loads(printed.out)["analyses"]["saturation"]
        assert [each["checkpoint"] for each in found] == ["step-5"]
        assert found[0]["mean"] == pytest.approx(1.0)  # two experts, and both read every token
        assert "step-10" in printed.err


class TestCompare:
    def test_two_models_read_one_text(self, checkpoint: Path, other: Path, capsys: Capture, tmp_path: Path) -> None:
        arguments = ["trace", HOSTILE, "-m", str(checkpoint), "--compare", str(other)]
        assert run([*arguments, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)["compare"]
        assert document["checkpoint"] == str(other)
        assert len(document["changed"]) > 0
        assert run(arguments) == 0
        shown = capsys.readouterr().out
        assert "same leading expert" in shown
        assert not steers(shown)
        assert run([*arguments, "--html", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "tokens led by another expert" in page
        assert not steers(page)

    def test_another_tokenizer_is_exit_4(self, checkpoint: Path, capsys: Capture, tmp_path: Path) -> None:
        from cmrn import CMRNTokenizer

        model = CMRN.from_pretrained(checkpoint)
        CMRN(model.config, CMRNTokenizer.train(["quite another text"] * 4, 270)).save_pretrained(tmp_path / "foreign")
        assert run(["trace", "law", "-m", str(checkpoint), "--compare", str(tmp_path / "foreign")]) == 4
        assert "tokenizer" in capsys.readouterr().err


class TestUnseen:
    @pytest.mark.parametrize(
        ("threshold", "said"), [(0.0, "no expert owns this"), (1.0, "as usual"), (None, "not measured")]
    )
    def test_the_verdict_is_shown(
        self, checkpoint: Path, capsys: Capture, tmp_path: Path, threshold: float | None, said: str
    ) -> None:
        model = CMRN.from_pretrained(checkpoint)
        assert model.tokenizer is not None
        folder = tmp_path / "model"
        with write_folder(folder) as temporary:
            write_model_files(temporary, model.config, model.state_dict(), model.tokenizer.to_json())
            if threshold is not None:
                (temporary / UNSEEN).write_text(Unseen((1,), (threshold,), 0.95, 64).to_json(), encoding="utf-8")
        assert run(["trace", "the law", "-m", str(folder)]) == 0
        assert said in capsys.readouterr().out
        assert run(["trace", "the law", "-m", str(folder), "--json"]) == 0
        verdict = json.loads(capsys.readouterr().out)["unseen"]
        assert verdict["threshold"] == threshold
        assert verdict["is_unseen"] == (None if threshold is None else threshold == 0.0)
        assert run(["trace", "the law", "-m", str(folder), "--html", str(tmp_path / "page.html")]) == 0
        capsys.readouterr()
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert ("No expert owns this." in page) == (threshold == 0.0)
        file = tmp_path / "held.jsonl"
        file.write_text(json.dumps({"text": "the court of law", "domain": "legal"}), encoding="utf-8")
        assert run(["eval", "-m", str(folder), "--data", str(file), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["unseen"]["legal"]
        assert found["documents"] == (None if threshold is None else 1.0 - threshold)
        assert 0 <= found["score"] <= 1


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [[], ["law", "--data", "x.txt"], ["law", "--expert", "math"], ["law", "--html", "."],
         ["law", "--html", "no/x.html"], ["--data", "gone.txt"]],
    )  # fmt: skip
    def test_what_does_not_go_together_is_exit_2(
        self, checkpoint: Path, capsys: Capture, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(["trace", *arguments, "-m", str(checkpoint)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "said"),
        [(b"", "no text"), (b'{"text": ""}\n', "no text"), (bytes(range(256)) * 9, "not JSON"), (b"[1]\n", "not a")],
    )
    def test_texts_that_are_none_are_exit_3_and_no_page_is_written(
        self, checkpoint: Path, capsys: Capture, tmp_path: Path, content: bytes, said: str
    ) -> None:
        (tmp_path / "texts.jsonl").write_bytes(content)
        line = ["trace", "-m", str(checkpoint), "--data", str(tmp_path / "texts.jsonl")]
        assert run([*line, "--html", str(tmp_path / "page.html")]) == 3
        printed = capsys.readouterr().err
        assert "texts.jsonl" in printed
        assert said in printed
        assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]

    def test_a_page_goes_where_a_link_leads(self, checkpoint: Path, capsys: Capture, tmp_path: Path) -> None:
        (tmp_path / "real.html").write_text("old", encoding="utf-8")
        (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
        assert run(["trace", "law", "-m", str(checkpoint), "--html", str(tmp_path / "link.html")]) == 0
        capsys.readouterr()
        assert (tmp_path / "link.html").is_symlink()
        assert Page((tmp_path / "real.html").read_text(encoding="utf-8")).tokens

    def test_stdin_is_read_for_a_dash_only(
        self, checkpoint: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the <law>"), encoding="utf-8"))
        assert run(["trace", "-", "-m", str(checkpoint), "--html", str(tmp_path / "page.html")]) == 0
        assert "".join(Page((tmp_path / "page.html").read_text(encoding="utf-8")).tokens) == "the <law>"


def test_each_character_is_one_token_s_own(checkpoint: Path) -> None:
    trace = trace_text(CMRN.from_pretrained(checkpoint), HOSTILE)
    assert "".join(own_texts(trace, HOSTILE)) == HOSTILE


def test_what_cannot_be_seen_is_spelled() -> None:
    assert visible("a\u200bb\u00adc\ufeff\u200d") == "a\\u200bb\\xadc\\ufeff\\u200d"
    assert visible("é 猫 😀\n\t") == "é 猫 😀\n\t"
    assert not steers(visible("".join(map(chr, range(0x3000))) + "\U000e0041\U0001d173"))
