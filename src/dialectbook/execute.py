"""Run one notebook headless with papermill:  python -m dialectbook.execute NOTEBOOK OUTPUT --result FILE [-p KEY VALUE]…

Unknown or wrongly typed parameters are errors (papermill only logs them), a notebook that ends without its result file
has failed, and a failure is told in one sentence.
"""

import argparse
import ast
import os
import sys
import tempfile
import time
from pathlib import Path

import yaml

from .files import UserError


def check_parameters(notebook, given):
    """Return the given parameters after comparing names and types with the notebook's parameters cell."""
    import papermill

    known = {name: ast.literal_eval(entry["default"]) for name, entry in papermill.inspect_notebook(str(notebook)).items()}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{notebook}: unknown parameter {key!r}; its parameters are {', '.join(known)}.")
        if type(value) is not type(known[key]):
            raise UserError(f"{notebook}: {key} = {value!r} is {type(value).__name__}, the notebook expects "
                            f"{type(known[key]).__name__} (numbers without quotes, small ones as 2.0e-4).")
    return given


def execute(notebook, output, result, given):
    """Run the notebook; `output` is kept also when it fails. Raises UserError with the reason in one sentence."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook, output, result = Path(notebook), Path(output), Path(result)
    if not notebook.is_file():
        raise UserError(f"{notebook} is missing.")
    check_parameters(notebook, given)
    before = result.stat().st_mtime_ns if result.exists() else None
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder  # the history database of IPython can lock on network file systems
        try:
            papermill.execute_notebook(str(notebook), str(output), parameters=given, progress_bar=False, cwd=str(notebook.parent))
        except PapermillExecutionError as error:
            raise UserError(f"{notebook.name}: {error.evalue if error.ename == 'UserError' else f'{error.ename}: {error.evalue}'} "
                            f"(the run so far: {output})") from None
    if not result.exists() or result.stat().st_mtime_ns == before:
        raise UserError(f"{notebook.name} ended without writing {result}; see {output}.")


def main():
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema would build a grammar for addresses, half of papermill's start, that no notebook needs
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook")
    parser.add_argument("output")
    parser.add_argument("--result", required=True, help="the file that the notebook must write")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    arguments = parser.parse_args()
    given = {key: yaml.safe_load(value) for key, value in arguments.parameter}
    begun = time.perf_counter()
    label = " ".join([Path(arguments.notebook).stem, *(str(given[key]) for key in ("experiment", "seed") if key in given)])
    print(f"  {label} …", flush=True)
    try:
        execute(arguments.notebook, arguments.output, arguments.result, given)
    except UserError as error:
        print(f"  {label} failed: {error}", flush=True)
        sys.exit(1)
    print(f"  {label} done in {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
