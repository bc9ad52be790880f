"""Gates that read files only: notebooks, parameters, versions, addresses."""

import ast
import importlib.metadata
import json
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dialectbook.book import COLAB, repository
from dialectbook.knobs import Knobs, experiments, load_knobs, profile_names, read_yaml
from dialectbook.paths import BOOK, NOTEBOOKS, PARAMS, ROOT

CHAPTERS = sorted(NOTEBOOKS.glob("*.ipynb"))


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell["metadata"].get("tags", [])


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    return request.param


def test_chapter_has_its_anatomy(chapter):
    """A chapter without set-up, parameters or check cell cannot run on Colab or headless; they come in this order."""
    special = [tag for cell in cells(chapter) for tag in tags(cell) if tag in ("setup", "parameters", "check")]
    assert special == ["setup", "parameters", "check"]
    prose = "\n".join(source(cell) for cell in cells(chapter, "markdown"))
    places = [prose.index(part) for part in ("# ", "**What you will see**", "Results against the paper", "## Exercise", "## What differs and why")]
    assert places == sorted(places)
    assert "finish(" in source(cells(chapter)[-1]), "the last cell must write the results file"


def test_chapter_is_stripped_and_parses(chapter):
    """Outputs, widget state and broken cells once went into git and made GitHub show 'Invalid Notebook'."""
    notebook = json.loads(chapter.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"]
    assert re.fullmatch(r"[0-9]{2}_[a-z0-9_]+", chapter.stem)
    for cell in cells(chapter):
        assert not cell["outputs"] and cell["execution_count"] is None
        code = source(cell)
        if "setup" in tags(cell):
            code = re.sub(r"^(\s*)[!%].*$", r"\1pass", code, flags=re.M)
        assert "sys.exit" not in code, "papermill takes sys.exit(0) for success"
        if "skip-execution" not in tags(cell):
            assert not re.search(r"^\s*[!%]", code, flags=re.M), "shell magic belongs into the set-up cell"
        ast.parse(code)


def test_parameters_are_literals(chapter):
    """papermill injects parameters after this cell: anything computed here would keep its old value."""
    cell = next(cell for cell in cells(chapter) if "parameters" in tags(cell))
    names = [statement.targets[0].id for statement in ast.parse(source(cell)).body if ast.literal_eval(statement.value) is not None]
    assert names in (["profile", "overrides"], ["profile", "experiment", "seed", "overrides"])


def test_exercises_are_not_run(chapter):
    """An exercise stub with holes in it must be skipped by papermill."""
    stubs = [cell for cell in cells(chapter) if "exercise" in tags(cell)]
    assert stubs and all("skip-execution" in tags(cell) for cell in stubs)


def test_addresses_follow_pyproject(chapter):
    """A fork changes one line in pyproject.toml; links that stay behind would open somebody else's notebooks."""
    text = "\n".join(source(cell) for cell in cells(chapter) + cells(chapter, "markdown"))
    slug = repository().removeprefix("https://github.com/")
    assert {f"https://colab.research.google.com/github/{slug}/"} == set(COLAB.findall(text))
    assert f"/{slug}/blob/main/notebooks/{chapter.name}" in text
    assert f"git clone -q --depth 1 --branch v{importlib.metadata.version('dialectbook')} {repository()} " in text


def test_table_of_contents_lists_what_exists():
    """A page that is listed and missing breaks the build; one that exists and is not listed cannot be found."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    prose = {path.stem for path in BOOK.glob("*.md")}
    assert sorted(listed) == sorted({f"notebooks/{path.stem}" for path in CHAPTERS} | prose)


def test_versions_agree():
    """environment.yml, pyproject.toml and requirements.lock once promised different versions of one package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split())
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["book"] + extras["test"]:
        requirement = Requirement(text)
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, text
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert "-r requirements.lock" in environment["dependencies"][-1]["pip"]
    assert f"TORCH = {locked['torch']}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "://" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_every_profile_and_experiment_loads():
    """A knob with a wrong type in one profile would only be found on the machine that the profile is for."""
    assert {"smoke", "tiny", "laptop", "t4", "a100"} == set(profile_names())
    for profile in profile_names():
        for experiment in ("", *experiments()):
            knobs, table = load_knobs(profile, experiment)
            assert len(table) == len(Knobs.model_fields)
            assert not knobs.trust_remote_code
            assert knobs.base_model == "twin" or re.fullmatch("[0-9a-f]{40}", knobs.base_revision), "hub revisions are pinned"
        assert all(entry["reason"] for entry in read_yaml(PARAMS / f"{profile}.yaml")["overrides"].values())


def test_published_settings_have_sources():
    """Every value of paper.yaml says where it stands."""
    for key, entry in read_yaml(PARAMS / "paper.yaml").items():
        assert set(entry) <= {"value", "source", "published"} and entry["source"], key


def test_modules_are_small_and_look_down_only():
    """No module over 300 lines; heavy libraries are imported inside functions so that importing the package is instant."""
    for path in sorted((ROOT / "src/dialectbook").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path.name
        top = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in top}
        assert not names & {"torch", "transformers", "trl", "peft", "datasets", "sklearn", "matplotlib"}, path.name
