"""Running: the notebook runner, the launcher, what a reader is shown."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dialectbook.book import page, with_address
from dialectbook.execute import check_parameters, execute
from dialectbook.files import UserError, fingerprint, is_finished, mark_finished
from dialectbook.paths import NOTEBOOKS, ROOT
from dialectbook.run import flow, lock, parse_overrides
from dialectbook.show import cell, marked, table


def notebook(folder, *sources, tags=("parameters",)):
    cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {"tags": list(tags) if i == 0 else []}, "source": [text], "outputs": [], "execution_count": None}
             for i, text in enumerate(sources)]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    path = folder / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_parameters_are_checked():
    """papermill writes a log line for an unknown parameter and ends with success."""
    chapter = NOTEBOOKS / "06_lora_sft.ipynb"
    assert check_parameters(chapter, {"seed": 3, "profile": "smoke"})
    with pytest.raises(UserError, match="unknown parameter 'sed'; its parameters are profile, experiment, seed, overrides"):
        check_parameters(chapter, {"sed": 3})
    with pytest.raises(UserError, match="seed = '3' is str, the notebook expects int"):
        check_parameters(chapter, {"seed": "3"})


def test_failed_notebook_is_kept_and_told_in_one_sentence(tmp_path):
    """The executed notebook of a failed run is the one that is needed; the message must be the user's, not a traceback."""
    source = "from dialectbook.files import UserError\nraise UserError('params.yaml: lora_r = 0 is not allowed.')"
    path = notebook(tmp_path, "lora_r = 1", source)
    with pytest.raises(UserError, match=r"a\.ipynb: params\.yaml: lora_r = 0 is not allowed") as error:
        execute(path, tmp_path / "out.ipynb", tmp_path / "result.json", {})
    assert "Traceback" not in str(error.value) and (tmp_path / "out.ipynb").is_file()


def test_notebook_without_result_has_failed(tmp_path):
    """sys.exit(0) in a cell makes papermill report success with the rest never run."""
    path = notebook(tmp_path, "x = 1", "import sys; sys.exit(0)")
    with pytest.raises(UserError, match="ended without writing"):
        execute(path, tmp_path / "out.ipynb", tmp_path / "result.json", {"x": 2})


def test_overrides_from_the_command_line():
    """Values keep their types on the way through YAML, also the small ones that JSON writes as 1e-05."""
    import yaml

    given = parse_overrides(["learning_rate=1.0e-05", "packing=true", "seeds=[1, 2]", "base_model=twin"])
    assert given == {"learning_rate": 1e-05, "packing": True, "seeds": [1, 2], "base_model": "twin"}
    assert yaml.safe_load(flow(given)) == given and "\n" not in flow(given)
    with pytest.raises(UserError, match="write --set knob=value"):
        parse_overrides(["lora_r"])


def test_only_one_run_at_a_time_and_no_stale_lock(tmp_path):
    """Snakemake's own lock outlives a killed run and asks for --unlock."""
    held = lock(tmp_path)
    with pytest.raises(UserError, match="another run is at work"):
        lock(tmp_path)
    held.close()
    child = subprocess.run([sys.executable, "-c", f"import os,pathlib; from dialectbook.run import lock; f = lock(pathlib.Path({str(tmp_path)!r})); os.kill(os.getpid(), 9)"],
                           check=False)
    assert child.returncode == -9
    lock(tmp_path).close()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--profile", "tinny"], "profile 'tinny' is unknown"), (["--profile", "smoke", "--set", "lora_r=0"], "lora_r = 0"),
    (["--profile", "smoke", "--set", "num_epoch=3"], "did you mean 'num_epochs'")])
def test_launcher_tells_mistakes_before_it_starts(arguments, message):
    """A mistake in the command must not become a traceback of Snakemake."""
    answer = subprocess.run([sys.executable, "-m", "dialectbook.run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 1 and message in answer.stderr
    assert answer.stderr.startswith("Error: ") and len(answer.stderr.strip().splitlines()) == 1


def test_gpu_profile_fails_at_once_without_a_gpu(monkeypatch):
    """a100 on a laptop: one sentence, and torch is not even imported."""
    code = ("import sys; from dialectbook.hardware import pick_profile, Hardware\n"
            "try: pick_profile('a100', Hardware('', 0.0, (0, 0), 2, 8.0))\n"
            "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["UserError", "False"]


def test_text_of_models_is_escaped_and_isolated():
    """Model output is untrusted: markup must stay text, Arabic must not turn the line around it."""
    shown = table([{"answer": "<script>alert(1)</script> هلا <b>", "n": 1}]).data
    assert "<script>" not in shown and "&lt;script&gt;" in shown and '<bdi lang="ar" dir="rtl"' in shown
    prompt = cell("### Instruction:\n<DIALECT=NAJDI>وش رايك؟")
    assert prompt.startswith("### Instruction:<br>") and '<bdi dir="ltr">&lt;DIALECT=NAJDI&gt;</bdi>وش رايك؟' in prompt
    english = cell("the commonest opening is (السلام عليكم يا), by far")
    assert english.startswith("the commonest opening is (<bdi lang=\"ar\" dir=\"rtl\"") and english.endswith("</bdi>), by far")
    assert cell(np.int64(3)) == "3" and cell(marked("إيش تسوي <b>")).count("<mark") == 1 and "<b>" not in cell(marked("إيش <b>"))
    assert cell("plain & simple") == "plain &amp; simple" and cell(None) == "–" and cell(True) == "yes"


def test_filter_table_escapes_and_offers_what_is_there():
    """The ledger's page is read in a browser: text from files must not become markup, and menus must offer the values of the rows."""
    from dialectbook.show import filter_table

    page = filter_table([{"claim": "<img src=x> هلا", "verdict": "exact"}, {"claim": "b", "verdict": "a & b"}], ["verdict"], caption="<i>").data
    assert "<img" not in page and "<i>" not in page and "&lt;img" in page and '<bdi lang="ar" dir="rtl"' in page
    assert '<option value="">all</option><option>a &amp; b</option><option>exact</option>' in page and 'data-column="1"' in page
    assert page.count("<tr>") == 3 and page.count("<script>") == 1 and "src=" not in page[page.index("<script>"):]
    assert "nothing to show" in table([], caption="Empty").data


def test_finished_work_is_known_by_its_recipe(tmp_path):
    """A result is taken over only if settings and inputs are the same and it was marked whole at the end."""
    data = tmp_path / "data.txt"
    data.write_text("a")
    recipe = fingerprint({"lr": 0.1}, [data])
    assert not is_finished(tmp_path / "out", recipe)
    mark_finished(tmp_path / "out", recipe)
    assert is_finished(tmp_path / "out", recipe) and not is_finished(tmp_path / "out", fingerprint({"lr": 0.2}, [data]))
    data.write_text("b")
    assert fingerprint({"lr": 0.1}, [data]) != recipe


def test_arabic_labels_are_shaped_by_matplotlib():
    """Reshaping by hand prints Arabic backwards from matplotlib 3.11 on. Joined letters are narrower than single ones, and
    the tall first letter of this word stands on the right."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def ink(text):
        figure = Figure(figsize=(4, 1), dpi=100)
        FigureCanvasAgg(figure).draw()
        figure.text(0.1, 0.3, text, fontsize=30, family="DejaVu Sans")
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[:, :, 0] < 128

    def width(text):
        columns = np.flatnonzero(ink(text).any(axis=0))
        return columns[-1] - columns[0]

    assert width("سسسس") < 0.9 * width("\u200c".join("سسسس"))
    picture = ink("اسسس")
    rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
    top = np.flatnonzero(picture[rows[0]:rows[0] + 4].any(axis=0))
    assert top.min() > (columns[0] + columns[-1]) / 2


def test_addresses_are_rewritten():
    """A fork's address reaches clone commands and Colab links, and nothing else."""
    text = "git clone https://github.com/dialectbook/dialectbook /x\nhttps://colab.research.google.com/github/dialectbook/dialectbook/blob/main/a.ipynb"
    changed = with_address(text, "https://github.com/me/fork")
    assert changed == "git clone https://github.com/me/fork /x\nhttps://colab.research.google.com/github/me/fork/blob/main/a.ipynb"
    assert with_address("https://github.com/dialectbook/dialectbook.git", "https://github.com/me/fork") == "https://github.com/me/fork.git"


def test_pages_drop_setup_and_noise():
    """The page has no install cell, no progress bars and no widget state."""
    code = {"cell_type": "code", "metadata": {"tags": []}, "source": ["x"], "execution_count": 1}
    raw = {"metadata": {"widgets": {}, "papermill": {}}, "cells": [
        {**code, "metadata": {"tags": ["setup"]}, "outputs": []}, {**code, "metadata": {"tags": ["parameters"]}, "outputs": []},
        {**code, "outputs": [{"output_type": "stream", "name": "stderr", "text": ["50%|##"]}, {"output_type": "stream", "name": "stdout", "text": ["kept"]}]}]}
    made = page(raw)
    assert len(made["cells"]) == 2 and "hide-input" in made["cells"][0]["metadata"]["tags"] and made["metadata"] == {}
    assert [o["text"] for o in made["cells"][1]["outputs"]] == [["kept"]]
