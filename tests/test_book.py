"""The whole book in the smoke profile, through the same Snakemake rules as `make book`, warnings as errors."""

import html
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from dialectbook.book import repository
from dialectbook.claims import evaluate_claims, ledger_rows, scoreboard
from dialectbook.data import IN_WORDS, OTHER_DIALECT
from dialectbook.files import read_json, read_jsonl
from dialectbook.knobs import experiments, load_knobs
from dialectbook.paths import NOTEBOOKS, ROOT, Run


def run_book(folder, *arguments):
    environment = os.environ | {"DIALECTBOOK_RUNS": str(folder)}
    return subprocess.run([sys.executable, "-m", "dialectbook.run", "--profile", "smoke", *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The run's folder and what was printed: by a first run that was killed when fine-tuning began, and by a second one."""
    folder = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"DIALECTBOOK_RUNS": str(folder)}
    first = subprocess.Popen([sys.executable, "-m", "dialectbook.run", "--profile", "smoke"], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                             text=True, start_new_session=True)
    killed = []
    for line in first.stdout:
        killed.append(line)
        if "06_lora_sft" in line:
            os.killpg(first.pid, signal.SIGKILL)
            break
    first.wait()
    answer = run_book(folder)
    assert answer.returncode == 0, "".join(killed) + answer.stdout[-3000:] + answer.stderr[-3000:]
    return folder / "smoke", "".join(killed), answer.stdout


def test_book_is_made_with_progress_and_headline(smoke):
    """The reader must see which chapter runs, how many are left, where the page is, and the headline table."""
    run, _, printed = smoke
    assert (run / "book/html/index.html").is_file() and str(run / "book/html/index.html") in printed
    assert re.search(r"\[\d+/\d+\] 1 left", printed) and "06_lora_sft token 1 …" in printed
    assert "requested-dialect accuracy" in printed and "No-Token" in printed


def test_killed_run_goes_on(smoke):
    """After a kill nothing that was finished is made again, and no lock has to be removed by hand."""
    _, first, second = smoke
    assert "04_continued_pretraining done" in first and "06_lora_sft" in first
    assert "04_continued_pretraining" not in second and "01_dataset_curation" not in second and "06_lora_sft token 1 done" in second


def test_contracts_of_a_run(smoke):
    """Other programs rely on these files (DESIGN: contracts)."""
    run = smoke[0]
    splits = {name: read_jsonl(run / f"data/{name}.jsonl", ("instruction", "response", "dialect", "scenario_id", "topic", "length")) for name in ("train", "dev", "test")}
    ids = {name: {row["scenario_id"] for row in rows} for name, rows in splits.items()}
    assert not (ids["train"] & ids["test"] or ids["train"] & ids["dev"] or ids["dev"] & ids["test"])
    assert all(sum(r["dialect"] == "HIJAZI" for r in rows) * 2 == len(rows) for rows in splits.values())
    for name in experiments():
        folder = run / f"experiments/{name}/seed-1"
        rows = read_jsonl(folder / "predictions.jsonl", ("scenario_id", "dialect", "prompt", "reference", "prediction"))
        found = read_json(folder / "metrics.json")
        assert found["n"] == len(rows) == 2 * len(splits["test"])
        assert all({"value", "low", "high", "n"} <= set(entry) for entry in found["corrected"].values())
        asked = load_knobs("smoke", name)[0].tag_test
        assert all((f"<DIALECT={r['dialect']}>" in r["prompt"]) == (asked == "prefix") for r in rows)
        assert all((f"<DIALECT={OTHER_DIALECT[r['dialect']]}>" in r["prompt"]) == (asked == "swapped") for r in rows)
        assert all((f"{IN_WORDS[r['dialect']]}: " in r["prompt"]) == (asked == "words") for r in rows)
        assert (folder / "adapter/adapter_model.safetensors").is_file() == (name in ("no_token", "token"))
    assert not list(run.rglob("*.pkl")) and not list((run / "base").rglob("*.bin"))


def test_test_split_never_reaches_training(smoke):
    """No test or dev response may be in what tokenizer, base, adapter and judge learn from."""
    from dialectbook.data import load_split, spare_scenarios, to_pairs
    from dialectbook.pretrain import training_texts

    knobs, _ = load_knobs("smoke")
    run = Run("smoke")
    run.root, run.data = smoke[0], smoke[0] / "data"
    spare = {pair["response"] for pair in to_pairs(spare_scenarios(knobs))}
    train = load_split(run, "train")
    read = "\n".join(training_texts(knobs, run)[0])
    learnt = {row["response"] for row in train} | {row["instruction"] for row in train}
    for row in load_split(run, "test") + load_split(run, "dev"):
        assert row["response"] not in read and row["response_msa"] not in read
        assert row["response"] not in learnt and row["instruction"] not in learnt and row["response"] not in spare
    assert spare and not spare & learnt and not any(text in read for text in spare), "the independent judge shares nothing with the models"


def test_second_run_has_nothing_to_do(smoke):
    answer = run_book(smoke[0].parent)
    assert answer.returncode == 0 and "Nothing was to do" in answer.stdout and "…" not in answer.stdout


def test_pages_stand_alone(smoke):
    """The folder must work without a network: no script, style, image or font from outside."""
    html = smoke[0] / "book/html"
    pages = [path for path in html.rglob("*.html") if "_static" not in path.parts]
    assert len(pages) >= len(list(NOTEBOOKS.glob("*.ipynb"))) + 4
    for path in pages:
        text = path.read_text(encoding="utf-8")
        outside = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', text)
        assert not [tag for tag in outside if 'rel="canonical"' not in tag], path.name
    assert (html / "_static/mathjax/MathJax.js").is_file() and (html / "_static/DejaVuSans.ttf").is_file()


def test_every_notebook_page_says_its_profile_and_opens_on_colab(smoke):
    """A Colab button that is a 404 is the most common fault of such books: the path must exist in the repository."""
    slug = repository().removeprefix("https://github.com/")
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        text = (smoke[0] / f"book/html/notebooks/{notebook.stem}.html").read_text(encoding="utf-8")
        links = set(re.findall(rf"https://colab\.research\.google\.com/github/{slug}/blob/main/([\w./]+)", text))
        assert links == {f"notebooks/{notebook.name}"} and (ROOT / links.pop()).is_file()
        assert "Profile smoke" in text and "CPU twin" in text
        assert "git clone" not in text


def test_front_page_says_what_the_results_say(smoke):
    """The headline table of the front page is the one of chapter 09, to the letter."""
    text = re.sub(r"<[^>]+>", "", (smoke[0] / "book/html/index.html").read_text(encoding="utf-8"))
    results = read_json(smoke[0] / "results/09_results.json")
    for row in results["headline"]:
        for value in row.values():
            assert str(value) in text
    assert results["made_by"] in text and "not ALLaM-7B" in results["made_by"]


def test_results_follow_from_the_outcomes(smoke):
    """Requested-dialect accuracy in the results must be recountable from the predictions' judged dialects."""
    results = read_json(smoke[0] / "results/09_results.json")
    points = {(p["endpoint"], p["experiment"]): p for p in results["forest"] if p["of"] == "book"}
    assert all(points[p["endpoint"], p["experiment"]]["value"] == p["value"] for p in results["endpoints"])
    for name in experiments():
        outcome = json.loads((smoke[0] / f"experiments/{name}/seed-1/metrics.json").read_text(encoding="utf-8"))["outcomes"]
        right = sum(a == b for a, b in zip(outcome["dialect"], outcome["produced"]))
        assert points["requested-dialect accuracy", name]["value"] == pytest.approx(right / len(outcome["dialect"]))


def test_ledger_in_the_page_is_what_the_result_files_say(smoke, monkeypatch):
    """Every row of chapter 18's page, verdict included, must follow from the result files; the front page counts the same."""
    monkeypatch.setenv("DIALECTBOOK_RUNS", str(smoke[0].parent))
    ledger = evaluate_claims(Run("smoke"))
    assert read_json(smoke[0] / "claims.json") == json.loads(json.dumps(ledger))
    page = (smoke[0] / "book/html/notebooks/18_claims.html").read_text(encoding="utf-8")
    body = page[page.index('id="db-claims"'):]
    body = body[body.index("<tbody>"):body.index("</tbody>")]
    shown = [[html.unescape(re.sub(r"<br>", "\n", re.sub(r"<(?!br>)[^>]+>", "", cell))) for cell in re.findall(r"<td.*?>(.*?)</td>", line, re.S)] for line in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
    assert shown == [[str(value) for value in row.values()] for row in ledger_rows(ledger)]
    front = re.sub(r"<[^>]+>", " ", (smoke[0] / "book/html/index.html").read_text(encoding="utf-8")).split()
    for row in scoreboard(ledger):
        expected = [word for value in row.values() for word in str(value).split()]
        assert any(front[i:i + len(expected)] == expected for i in range(len(front))), row


def test_every_figure_has_its_numbers(smoke):
    """A figure without its data beside it cannot be checked or drawn again."""
    pictures = {path.stem for path in (smoke[0] / "figures").glob("*.png")}
    assert pictures == {path.stem for path in (smoke[0] / "figures").glob("*.csv")}
    assert {"forest", "control_matrices", "judge_calibration", "dialect_and_fidelity", "claims"} <= pictures
