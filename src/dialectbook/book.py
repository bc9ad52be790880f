"""The HTML book: stages the executed notebooks and prose pages of a run, then builds them.

  python -m dialectbook.book build --profile tiny
  python -m dialectbook.book address      write the address of pyproject.toml into the notebooks
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from .claims import scoreboard
from .files import UserError, read_json, write_json, write_text
from .knobs import experiments, load_knobs
from .paths import BOOK, NOTEBOOKS, ROOT, Run

ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+?(?=\.git|[\s\"')/]|$)")
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/")


def repository():
    """Return the project's public address, from the one line in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["repository"].rstrip("/")


def with_address(text, address):
    """Return a notebook's or page's text with every address of the repository, and its Colab links, set to `address`."""
    colab = "https://colab.research.google.com/github/" + address.removeprefix("https://github.com/") + "/"
    return COLAB.sub(colab, ADDRESS.sub(address, text))


def write_address():
    """Write the address into the set-up cells and Colab links of all notebooks; return the files changed."""
    changed = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = read_json(path)
        for cell in notebook["cells"][:4]:  # title, aims, set-up, parameters
            cell["source"] = [with_address(line, repository()) for line in cell["source"]]
        text = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            changed.append(path)
    return changed


def pages_of(profile):
    """Return chapter -> executed notebook; chapters that run per experiment and seed show one run (the last one trained)."""
    run, seeds = Run(profile), load_knobs(profile)[0].seeds
    shown = [name for name, entry in experiments().items() if entry["model_of"] == name and load_knobs(profile, name)[0].tune][-1]
    pages = {}
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        alone = run.root / "notebooks" / source.name
        one = run.root / "notebooks" / f"{source.stem}.{shown}.seed-{seeds[0]}.ipynb"
        pages[source.stem] = alone if alone.is_file() else one
        if not pages[source.stem].is_file():
            raise UserError(f"chapter {source.stem} has not run in profile {profile}; run `make book PROFILE={profile}`.")
    return pages


def stage(profile):
    """Return the folder of the book's source: prose, executed notebooks, figures, fonts and MathJax, all local."""
    import jupyter_server_mathjax
    import matplotlib

    run = Run(profile)
    source = run.root / "book" / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(BOOK, source)
    static = source / "_static"
    shutil.copytree(Path(jupyter_server_mathjax.__file__).parent / "static", static / "mathjax",
                    ignore=shutil.ignore_patterns("localization", "otf", "svg", "png"))
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", static)
    if run.figures.is_dir():
        shutil.copytree(run.figures, source / "figures", dirs_exist_ok=True)
    for chapter, executed in pages_of(profile).items():
        write_json(source / "notebooks" / f"{chapter}.ipynb", page(read_json(executed)))
    config = yaml.safe_load((BOOK / "_config.yml").read_text(encoding="utf-8"))
    config["repository"]["url"] = repository()
    write_text(source / "_config.yml", yaml.safe_dump(config, allow_unicode=True, sort_keys=False))
    write_text(source / "generated" / "headline.md", front_table(run))
    write_text(source / "generated" / "scoreboard.md", score_table(run))
    index = (source / "index.md").read_text(encoding="utf-8")
    write_text(source / "index.md", with_address(index, repository()))
    return source


def page(notebook):
    """Return the notebook as the book shows it: no set-up cell, parameters and check folded, no widget state."""
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if {"setup", "injected-parameters"} & set(tags):
            continue
        if {"parameters", "check"} & set(tags):
            cell["metadata"]["tags"] = [*tags, "hide-input"]
        cell["metadata"].pop("execution", None)
        cell["metadata"].pop("papermill", None)
        for output in cell.get("outputs", []):  # progress bars of libraries are noise in a page
            if output.get("name") == "stderr":
                output["text"] = []
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("text") != []]
        if cell["cell_type"] != "code":
            cell.pop("outputs")
        cells.append(cell)
    metadata = {key: value for key, value in notebook["metadata"].items() if key not in ("widgets", "papermill")}
    return notebook | {"cells": cells, "metadata": metadata}


def front_table(run):
    """Return the front page's results as Markdown: headline and claims of chapter 09, and which profile made them."""
    results = read_json(run.results / "09_results.json", "09_results")
    claims = [{key: claim[key] for key in ("claim", "paper", "here", "verdict")} for claim in results["claims"]]
    return "\n\n".join([*map(markdown_table, filter(None, (results["headline"], claims))), results["made_by"], ""])


def score_table(run):
    """Return the front page's scoreboard as Markdown: claims of each paper by verdict, from the ledger of chapter 18."""
    return markdown_table(scoreboard(read_json(run.root / "claims.json", "18_claims"))) + "\n"


def markdown_table(rows):
    """Return a list of dicts as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows])


def build(profile):
    """Build the HTML book of a profile, warnings as errors; return the path of its first page."""
    source = stage(profile)
    target = Run(profile).root / "book"
    shutil.rmtree(target / "_build", ignore_errors=True)
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(source), "--path-output", str(target), "-W", "-n",
               "--keep-going"]
    if subprocess.run(command).returncode:
        raise UserError(f"the book of profile {profile} could not be built; jupyter-book's own message is above.")
    html = target / "html"
    shutil.rmtree(html, ignore_errors=True)
    (target / "_build" / "html").rename(html)
    return html / "index.html"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["build", "address"])
    parser.add_argument("--profile", default="tiny")
    arguments = parser.parse_args()
    try:
        if arguments.what == "build":
            print(build(arguments.profile))
        else:
            print("changed:", ", ".join(path.name for path in write_address()) or "nothing")
    except UserError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
