"""The page of the report: its parts from a finished workspace, harmful texts, missing parts."""

from __future__ import annotations

import gzip
import json
import os
import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.support.flows import finished_workspace
from tests.support.flows.finished_workspace import FORGED_NAME, PICTURE, PLAIN, TURNED, VOCABULARY, write_workspace

from flows.parameters.requests import RunRequest
from flows.parameters.whole_recipe import WholeRecipe
from flows.report import data_sections
from flows.report import files as report_files
from flows.report import page as report_page
from flows.report import result_sections as report_results
from flows.report import samples as report_samples
from flows.report.facts import gather
from flows.report.manifest_facts import TaskFacts
from flows.report.page import SECTIONS, html_page
from flows.report.result_sections import reference_lines
from flows.running.outcomes import FlowOutcome
from pipelines.contract.manifest import read_manifest
from pipelines.statistics.metrics import BERT_METRICS, MINIMAL_PAIRS, MLM_LOSS


@pytest.fixture
def whole(write_recipe: Callable[..., str]) -> WholeRecipe:
    return RunRequest(recipe=write_recipe()).read()


def facts_of(whole: WholeRecipe, outcome: FlowOutcome) -> dict[str, Any]:
    return gather(whole, outcome, "sqlite:////ws/mlflow.db", "/ws/prefect")


class Outline(HTMLParser):
    """Elements with their attributes' names, in order, and the text of the page."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_tells_the_run_from_its_result_to_its_origin(whole: WholeRecipe) -> None:
    facts = facts_of(whole, write_workspace(whole))
    contents = report_files.write_report(whole, facts)
    assert set(contents) == {"report.json", "report.md", "report.html"}
    page = contents["report.html"]
    with open(os.path.join(whole.run.workspace, "report.html"), encoding="utf-8") as stream:
        assert stream.read() == page
    assert re.findall(r'<section id="([\w-]+)"', page) == [section.identifier for section in SECTIONS]
    text = Outline(page).text
    for told in (
        "1.5 million parameters, pre-trained from raw text on 2.34 million tokens in 2,200 steps.",
        "18.0 % 0.0 % before training",
        "57.3 % 51.3 % from random weights (+6.0 ± 2.2), 50.0 % majority",
        "documents kept 1,100 91.7 %",
        "the same text as document 0f0f",
        "unseen 100 -",
        f"{len(VOCABULARY)} entries learnt from 43,210 distinct words",
        "B continues A (IsNext), 11 tokens",
        "B is from another document (NotNext), 9 tokens",
        "adam_beta2 0.98 (BERT: 0.999)",
        "squad * f1 81.2 %",
        "already complete, time unknown",
        "models:/trial-cola@champion 3 registered now",
        "mlflow.set_tracking_uri('sqlite:////ws/mlflow.db')",
        "-m flows.end_to_end",
        "examples.seed 12345",
    ):
        assert told in text, told
    assert facts["origin"]["digests"]["examples"] in text
    assert 'name = "trial"' in text
    assert facts["versions"]["torch"] in text


def test_warnings_of_stages_stand_at_the_top(whole: WholeRecipe) -> None:
    facts = facts_of(whole, write_workspace(whole))
    page = html_page(facts)
    assert page.index("9.7 % of all tokens are [UNK]") < page.index('<dl class="results">') < page.index("<main>")
    text = Outline(page).text
    assert "[UNK] among all tokens vocabulary 9.7 %" in text
    assert "pieces a word vocabulary 1.23" in text
    (line,) = (
        line for line in report_files.markdown(facts).splitlines() if line.startswith("Warning, vocabulary: 9.7 %")
    )
    assert "\x1b" not in line
    assert '<aside class="warnings"' not in html_page(facts | {"warnings": []})


def test_a_reference_is_drawn_over_the_losses_by_tokens(whole: WholeRecipe) -> None:
    facts = facts_of(whole, write_workspace(whole))
    assert facts["reference"] == {}
    facts["curves"] = {"mlm_loss": [[0, 9.0], [10, 5.0]], "tokens": [[0, 0.0], [10, 1_000.0]]}
    facts["reference"] = {
        "name": "no<v>els",
        "about": "",
        "curves": {"mlm_loss": [[0.0, 8.0], [500.0, 6.0], [2e3, 5.0]]},
    }
    (line,) = reference_lines(facts["curves"], facts["reference"], [MLM_LOSS])
    # 500 tokens are half of this run's, so its step 5; the reference goes further than the run.
    assert line.points == [(0.0, 8.0), (5.0, 6.0)]
    page = html_page(facts)
    assert "MLM loss of no&lt;v&gt;els" in page
    facts["reference"] = {"problem": "InputError: nowhere"}
    assert "InputError: nowhere" in html_page(facts)


def test_minimal_pairs_have_a_table_and_a_result(whole: WholeRecipe) -> None:
    facts = facts_of(whole, write_workspace(whole))
    assert "Minimal pairs" not in html_page(facts)
    groups = {
        name: {"accuracy": accuracy, "standard_error": 0.014, "pairs": 500, "ties": 1}
        for name, accuracy in (("word_order", 0.75), ("art<b>icle", 0.5))
    }
    overall = {"accuracy": 0.625, "standard_error": 0.01, "pairs": 1_000, "ties": 2}
    found = {"data": "heldout", "data_sha256": "d", "method": "original", "overall": overall, "groups": groups}
    heldout = {"heldout_before": {MINIMAL_PAIRS.name: 0.5}, "heldout_after": {MINIMAL_PAIRS.name: 0.625}}
    metrics = [vars(metric) for metric in (*BERT_METRICS, MINIMAL_PAIRS)]
    facts["pretraining"] |= {"minimal_pairs": found, "metrics": metrics, **heldout}
    page = html_page(facts)
    text = Outline(page).text
    assert "0.5 is chance. Source: pairs made from the held-out documents" in text
    assert "art<b>icle" in text
    assert "art<b>icle" not in page
    for row in ("word_order 0.750 0.014 500 1", "all 0.625 0.010 1,000 2"):
        assert row in text
    assert "accuracy on minimal pairs, held out 62.5" in text


def test_phases_by_tokens_have_a_place_on_the_curves(write_recipe: Callable[..., str]) -> None:
    phases = "[" + ", ".join(f"{{ max_seq_length = 32, tokens = {count} }}" for count in (96_000, 48_000)) + "]"
    overrides = (f"pretraining.phases={phases}", "pretraining.num_warmup_steps=10_000")
    by_tokens = RunRequest(recipe=write_recipe(), overrides=overrides).read()
    facts = facts_of(by_tokens, write_workspace(by_tokens))
    page = html_page(facts)
    assert "96,000 tokens" in Outline(page).text
    assert [phase["about_steps"] for phase in facts["phases"]] != [None, None]
    assert html_page(facts | {"phases": [{**phase, "about_steps": None} for phase in facts["phases"]]})


def test_names_of_files_with_control_characters_are_shown_escaped(
    whole: WholeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of files and recipes appear on the page, in the Markdown and on the terminal without controlling them."""
    facts = facts_of(whole, write_workspace(whole)) | {"recipe": FORGED_NAME, "overrides": [FORGED_NAME]}
    page, told = html_page(facts), report_files.markdown(facts)
    assert r"a\x1b]0;title\x07\nerror: forged\r&lt;script&gt;alert(2)&lt;/script&gt;.txt" in page
    assert r"a\x1b]0;title\x07\nerror: forged\r" in told
    report_files.show(facts, Console(width=200))
    shown = capsys.readouterr().out
    for output in (page, told, shown):
        assert not any(unicodedata.category(each) == "Cc" and each != "\n" for each in output)
        assert not any(line.startswith("error:") for line in output.splitlines())
    assert "<script" not in page


def test_equal_facts_give_equal_bytes_from_memory_and_from_the_file(whole: WholeRecipe) -> None:
    outcome = write_workspace(whole)
    contents = report_files.write_report(whole, facts_of(whole, outcome))
    assert report_files.write_report(whole, facts_of(whole, outcome)) == contents
    assert html_page(json.loads(contents["report.json"])) == contents["report.html"]


def test_a_page_fetches_nothing_and_runs_nothing(whole: WholeRecipe) -> None:
    page = html_page(facts_of(whole, write_workspace(whole)))
    outline = Outline(page)
    tags = {element[0] for element in outline.elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "form", "base"})
    assert not [name for element in outline.elements for name in element[1:] if name.startswith("on")]
    assert set(re.findall(r'(?:href|src)="([^"#]*)', page)) == {"", "data:,"}
    assert "@import" not in page
    assert "url(" not in page
    # Harmful text is shown as text.
    assert "</script></td><script>alert(1)</script>" in outline.text
    assert PICTURE in outline.text
    assert page.encode().decode() == page


# Random letters alone would rarely form an element.
HARMFUL = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=()), min_size=1),
        st.sampled_from(["<b>", "</bdi>", "</script>", '"><i>', "'", "<!--", "]]>", "&lt;", "\u202e", "\ud800"]),
    ),
    min_size=1,
    max_size=5,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(HARMFUL, min_size=6, max_size=6))
def test_no_text_of_a_corpus_changes_the_page_around_it(texts: list[str]) -> None:
    assert Outline(html_page(_facts(texts))).elements == Outline(html_page(_facts(["x"] * 6))).elements


def _facts(texts: list[str]) -> dict[str, Any]:
    source, detail, word, piece, token, original = map(report_samples.printable, texts)
    return {
        "run": "trial",
        "recipe": "recipe.toml",
        "overrides": [],
        "workspace": "ws",
        "warnings": [{"stage": "vocabulary", "text": detail}],
        "corpus": {
            "sources": [{"format": "text", "inputs": [source]}],
            "documents_read": 2,
            "documents_kept": 1,
            "documents_rejected": 1,
            "rejected_by_reason": {"too-short": 1},
            "heldout_documents": None,
            "sentences": None,
            "characters": None,
            "cleaning": {},
            "vocabulary_size": 2,
            "distinct_words": None,
            "examples": 1,
            "example_tokens": 2,
            "lengths": {},
        },
        "rejects": {"too-short": {"source": source, "detail": detail}},
        "vocabulary": {
            **dict.fromkeys(("entries", "special", "characters", "words", "pieces"), 1),
            **{name: [word] for name in ("longest", "pieces_learnt_first", "learnt_last")},
        },
        "examples": {
            "masking": "static",
            "has_pairs": True,
            "frequent_words": [word],
            "split_words": [[piece, piece, piece]],
            "examples": [
                # A prefix of letters: special tokens and continuing pieces are written differently.
                {
                    "tokens": [["[CLS]", None], [f"a{token}", None], [f"b{token}", f"c{original}"]],
                    "segment_b_start": 2,
                    "is_random_next": 1,
                }
            ],
        },
        "curves": {"problem": detail},
        "model": {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2},
        "phases": [],
        "pretraining": {},
        "tasks": [],
        "stages": [],
        "models": [],
        "commands": {},
        "tracking_uri": "sqlite:///mlflow.db",
        "origin": {"command": "python", "seeds": {}, "digests": {}, "recipe_text": {"text": source}},
        "versions": {},
    }


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 40))
def test_foreign_text_is_made_printable(text: str, characters: int) -> None:
    shown = report_samples.printable(text, characters)
    assert not [each for each in shown if unicodedata.category(each) in ("Cc", "Cs")]
    assert shown.encode().decode() == shown
    assert len(shown) == min(len(text), characters + 1)
    assert shown.endswith("…") or len(text) <= characters


def test_a_masked_example_is_shown_as_text(whole: WholeRecipe) -> None:
    facts = facts_of(whole, write_workspace(whole))
    is_next, not_next = facts["examples"]["examples"]
    assert [part for part in is_next["tokens"] if part[1] is not None] == [
        ["[MASK]", "cat"],
        ["<b>", "the"],
        ["mat", "mat"],
    ]
    page = html_page(facts)
    rubies = re.findall(r'<ruby class="(\w+)".*?<bdi>(.*?)</bdi><rt><bdi>(.*?)</bdi>', page)
    assert rubies[:3] == [("mask", "[MASK]", "cat"), ("random", "&lt;b&gt;", "the"), ("kept", "mat", "mat")]
    # The piece is joined to the word that is to be predicted; B begins behind the first [SEP].
    assert "<rt><bdi>mat</bdi></rt></ruby><bdi>s</bdi> <bdi>.</bdi>" in page
    assert re.search(r'<div class="segment s4"><b>B</b> <bdi>on</bdi>', page)
    assert not_next["segment_b_start"] == 5
    assert facts["examples"]["split_words"] == [["long", "est", "ation"]]
    # "mat" is the head of "mats", so these are the complete words; the masked ones are counted too.
    assert facts["examples"]["frequent_words"] == ["the", "cat", "sat", "on", VOCABULARY[20]]


@pytest.mark.parametrize(
    ("metadata", "told", "untold"),
    [
        ({"masking": "dynamic"}, "dynamic masking", "beneath each token"),
        ({"next_sentence": "false"}, "no next-sentence task", "IsNext"),
    ],
)
def test_examples_without_masks_or_without_pairs(
    whole: WholeRecipe, metadata: dict[str, str], told: str, untold: str
) -> None:
    outcome = write_workspace(whole, [PLAIN], metadata)
    page = html_page(facts_of(whole, outcome))
    assert told in page
    assert untold not in page
    assert "<bdi>long</bdi><bdi>est</bdi><bdi>ation</bdi>" in page


def test_a_section_is_a_row(whole: WholeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    more = report_page.Section("more", "More <of it>", lambda facts: f"<p>{len(facts['tasks'])} tasks</p>")
    monkeypatch.setattr(report_page, "SECTIONS", (*SECTIONS, more))
    page = html_page(facts_of(whole, FlowOutcome()))
    assert '<a href="#more">More &lt;of it&gt;</a></nav>' in page
    assert re.search(r'<h2 id="more-heading">More &lt;of it&gt;</h2>\n<p>\d+ tasks</p>\n</section>\n</main>', page)


def test_a_workspace_without_anything_still_gives_a_page(whole: WholeRecipe) -> None:
    page = html_page(facts_of(whole, FlowOutcome()))
    assert [section.identifier for section in SECTIONS] == re.findall(r'<section id="([\w-]+)"', page)
    assert page.count("The workspace has no data for this section.") == 6
    assert "Nothing has been pre-trained" in page


@pytest.mark.parametrize(
    "name",
    ["documents/rejected.jsonl.gz", "vocabulary/vocab.txt", "examples/length32/train-00000-of-00001.arrow"],
)
@pytest.mark.parametrize("damage", [b"", b"\xff\xfe not this\n", None])
def test_a_damaged_file_is_told_and_the_rest_shown(whole: WholeRecipe, name: str, damage: bytes | None) -> None:
    outcome = write_workspace(whole)
    path = os.path.join(whole.run.workspace, name)
    if damage is None:
        os.remove(path)
    else:
        with open(path, "wb") as stream:
            stream.write(damage)
    page = html_page(facts_of(whole, outcome))
    assert "This part could not be read:" in page or (name.endswith(("gz", "txt")) and damage == b"")
    assert "adam_beta2 0.98" in page
    assert "+6.0" in page


def test_a_trial_of_another_version_is_told(whole: WholeRecipe) -> None:
    outcome = write_workspace(whole)
    path = os.path.join(whole.run.workspace, "finetuning", "squad", "pretrained", "manifest.json")
    with open(path, "w") as stream:
        stream.write("{}")
    assert re.search(r"squad: <bdi>.*damaged, or not a manifest of this project", html_page(facts_of(whole, outcome)))


def test_rejects_are_read_until_each_reason_is_seen(
    whole: WholeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    write_workspace(whole)
    found = report_samples.reject_samples(f"{whole.run.workspace}/documents", ["duplicate", "not-utf-8", "too-short"])
    assert list(found) == ["duplicate", "not-utf-8", "too-short"]
    assert found["too-short"] == {"source": finished_workspace.SCRIPT, "detail": PICTURE}
    assert found["not-utf-8"]["source"] == TURNED

    lines = [json.dumps({"source": str(number), "reason": "often", "detail": ""}) + "\n" for number in range(1000)]
    lines.append(json.dumps({"source": "last", "reason": "rare", "detail": ""}) + "\n")
    members = [gzip.compress("".join(lines[begin : begin + 100]).encode()) for begin in range(0, len(lines), 100)]
    with open(f"{tmp_path}/rejected.jsonl.gz", "wb") as stream:
        stream.write(b"".join(members))
    assert list(report_samples.reject_samples(str(tmp_path), ["often", "rare"])) == ["often", "rare"]
    monkeypatch.setattr(report_samples, "_REJECTS_BYTES", 10_000)
    assert list(report_samples.reject_samples(str(tmp_path), ["often", "rare"])) == ["often"]


def test_long_curves_are_thinned_and_long_files_sampled(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = [[step, step / 8] for step in range(1, 20_001)]
    text = "".join(json.dumps({"step": step, "mlm_loss": value, "other": 1}) + "\n" for step, value in truth)
    with open(f"{tmp_path}/metrics.jsonl", "w") as stream:
        stream.write(text)
    for limit_bytes in (8 << 20, 100_000):
        monkeypatch.setattr(report_samples, "_METRICS_BYTES", limit_bytes)
        (name, points), *more = report_samples.curves(str(tmp_path), ["mlm_loss", "mlm_accuracy"]).items()
        assert (name, more) == ("mlm_loss", [])
        assert len(points) == 240
        assert points[0] == truth[0]
        assert points[-1] == truth[-1]
        assert points == sorted(points)
        assert all(value == pytest.approx(step / 8, rel=1e-5) for step, value in points)


def test_examples_are_read_from_a_length_that_is_a_pleasure_to_read(whole: WholeRecipe) -> None:
    write_workspace(whole)
    directory = f"{whole.run.workspace}/examples"
    manifest = read_manifest(directory)
    assert manifest is not None
    facts = report_samples.example_samples(directory, manifest, VOCABULARY)
    assert (facts["max_seq_length"], facts["rows_counted"]) == (32, 2)
    with pytest.raises(ValueError, match=r"holds id \d+, the vocabulary only 5 entries"):
        report_samples.example_samples(directory, manifest, VOCABULARY[:5])


def test_the_standard_error_of_an_accuracy() -> None:
    assert report_results.standard_error("accuracy", 0.5, 100) == pytest.approx(0.05)
    assert report_results.standard_error("matthews_correlation", 0.5, 100) is None
    task = TaskFacts(task="cola", metric="matthews_correlation", pretrained=0.125, random=0.25, dev_rows=1043)
    assert report_results.gain(task) == "-0.125"
    assert report_results.gain(task.model_copy(update={"random": None})) == "-"


def test_a_vocabulary_that_was_brought_names_its_origin() -> None:
    corpus = {"vocabulary_origin": "models:/bert@champion", "words_added": 12}
    sample = {
        "entries": 30_522,
        "words": 9,
        "pieces": 8,
        "characters": 7,
        "special": 6,
        "longest": [],
        "learnt_last": [],
    }
    facts = {"corpus": corpus, "vocabulary": {**sample, "pieces_learnt_first": []}, "examples": {}}
    lead = Outline(data_sections.vocabulary(facts)).text
    assert lead.startswith(
        "30,522 entries brought from models:/bert@champion , with 12 words of the corpus added: 9 words"
    )
