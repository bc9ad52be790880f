"""Reading and writing files so that nothing is lost: clear errors, temporary file and rename, recipes for resuming."""

import hashlib
import json
import os
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence (in a notebook without a traceback)."""

    def _render_traceback_(self):
        return [f"UserError: {self}"]


def read_jsonl(path, required=()):
    """Return the rows of a JSON Lines file as a list of dicts, in order.

    `required` names keys that each row must hold. Raises UserError that names the file and the line.
    A byte-order mark and empty lines are accepted.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not valid JSON ({error.msg} at character {error.pos}); "
                                    "each line must be one complete JSON object.") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: found {type(row).__name__}, expected a JSON object.")
                missing = [key for key in required if key not in row]
                if missing:
                    raise UserError(f"{path}, line {number}: the key {missing[0]!r} is missing; "
                                    f"a row needs {', '.join(required)}.")
                rows.append(row)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    return rows


def write_text(path, text):
    """Write text to a temporary file beside `path`, then rename: the old file stays until the new one is whole.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} could not be written ({error.strerror}); the earlier file, if any, is unchanged. "
                        "Free some space or choose another folder with DIALECTBOOK_RUNS, then run again.") from None
    return path


def write_json(path, value):
    """Write `value` as readable JSON, by way of a temporary file; return the path."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_jsonl(path, rows):
    """Write one JSON object per line, by way of a temporary file; return the path."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path, made_by=""):
    """Return the content of a JSON file; when it is missing, the error says which chapter makes it."""
    path = Path(path)
    if not path.is_file():
        hint = f" Chapter {made_by} makes it: run that one first." if made_by else ""
        raise UserError(f"{path} is missing.{hint}")
    return json.loads(path.read_text(encoding="utf-8"))


def fingerprint(settings, inputs=()):
    """Return a short hash of all that determines a result: settings (JSON-like) and the content of input files.

    Folders count with every file below them, by name and content.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=False, default=str).encode())
    for path in map(Path, inputs):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def is_finished(folder, recipe):
    """Return whether `folder` holds a finished result made with this recipe (the hash from `fingerprint`)."""
    mark = Path(folder) / "recipe.json"
    return mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["recipe"] == recipe


def mark_finished(folder, recipe):
    """Mark the result in `folder` as whole: the last thing written, so that a killed run is never taken for one."""
    return write_json(Path(folder) / "recipe.json", {"recipe": recipe})
