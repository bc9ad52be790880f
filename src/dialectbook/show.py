"""What a reader sees: tables, right-to-left text and figures, safe for text that models or data wrote."""

import csv
import html
import io
import re

from .data import DIACRITICS, DIALECTS
from .files import write_text
from .hardware import GPU_PROFILES

ARABIC = re.compile("[\u0600-\u06ff]")
LATIN = re.compile(r"[<(]?[A-Za-z][\x21-\x27\x2a-\x7e]*[>)]?")
ARABIC_RUN = re.compile("[\u0600-\u06ff]+(?:[ \u060c]+[\u0600-\u06ff]+)*")
FONT = "'Noto Naskh Arabic', 'Amiri', 'Geeza Pro', 'Segoe UI', 'Traditional Arabic', 'DejaVu Sans', serif"
ARABIC_HTML = f'<bdi lang="ar" dir="rtl" style="font-family:{FONT};font-size:1.1em">{{}}</bdi>'
COLOURS = {"base": "#666666", "base_tagged": "#B0B0B0", "no_token": "#0072B2", "token": "#D55E00", "paper": "#000000",
           "HIJAZI": "#009E73", "NAJDI": "#CC79A7"}  # Okabe and Ito, safe for colour-blind readers
MARKERS = {"base": "s", "base_tagged": "v", "no_token": "o", "token": "^", "paper": "D"}
NAMES = {"base": "Base", "base_tagged": "Base, tagged", "no_token": "No-Token", "token": "Token", "HIJAZI": "Hijazi", "NAJDI": "Najdi"}


def cell(value):
    """Return a value as safe HTML: escaped, Arabic isolated right to left, floats with up to four figures."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{cell(key)} {cell(one)}" for key, one in value.items())
    if hasattr(value, "_repr_html_"):  # HTML of `marked`
        return value._repr_html_()
    return "<br>".join(map(isolate, str(value).split("\n")))


def isolate(line):
    """Return one line of text as safe HTML, each script isolated in its own direction.

    A line is Arabic when it holds more Arabic than Latin letters, tags not counted: then it runs right to left and Latin
    words in it left to right; otherwise it is the other way round.
    """
    if not ARABIC.search(line):
        return html.escape(line)
    arabic = len(ARABIC.findall(line)) > len(re.findall("[A-Za-z]", re.sub("<[^>]*>", "", line)))
    parts, end = [], 0
    for match in (LATIN if arabic else ARABIC_RUN).finditer(line):
        parts.append(html.escape(line[end:match.start()]))
        parts.append(f'<bdi dir="ltr">{html.escape(match.group())}</bdi>' if arabic else ARABIC_HTML.format(html.escape(match.group())))
        end = match.end()
    inner = "".join([*parts, html.escape(line[end:])])
    return ARABIC_HTML.format(inner) if arabic else inner


def marked(text):
    """Return an Arabic text as HTML with its Hijazi and Najdi markers (`describe.find_markers`) in the colours of the two."""
    from IPython.display import HTML

    from .describe import find_markers

    spans = {word: dialect for dialect in DIALECTS for word in find_markers(text, [dialect])}
    words = [f'<mark style="background:{COLOURS[spans[bare]]}44;color:inherit">{html.escape(word)}</mark>' if bare in spans else html.escape(word)
             for word in re.split(r"(\W+)", text) for bare in [DIACRITICS.sub("", word)]]
    return HTML(ARABIC_HTML.format("".join(words)))


def table(rows, columns=None, caption="", note=""):
    """Return an HTML table of a list of dicts (an IPython HTML object); wide tables scroll inside their own box."""
    from IPython.display import HTML

    columns = columns or list(rows[0])
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)

    def body_cell(value):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        kind = ' class="long"' if len(str(value)) > 60 else ""  # the book's style sheet keeps long texts readable on a phone
        return f'<td{kind} style="text-align:{"right" if number else "start"}" dir="auto">{cell(value)}</td>'

    body = "".join("<tr>" + "".join(body_cell(row.get(column)) for column in columns) + "</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    foot = f"<p><small>{html.escape(note)}</small></p>" if note else ""
    return HTML(f'<div class="db-table" style="overflow-x:auto"><table>{title}<thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div>{foot}")


def paragraphs(*lines):
    """Return lines of plain text as HTML paragraphs, escaped."""
    from IPython.display import HTML

    return HTML("".join(f"<p>{html.escape(line)}</p>" for line in lines))


def folded(summary, content):
    """Return HTML content that opens on a click."""
    from IPython.display import HTML

    return HTML(f"<details><summary>{html.escape(summary)}</summary>{content.data}</details>")


def word_cloud(counts, largest=40):
    """Return the most frequent words as HTML, size by the square root of the count, right to left in a real font."""
    from IPython.display import HTML

    words = counts.most_common(largest)
    top = words[0][1]
    spans = " ".join(f'<span title="{count:,}" style="font-size:{0.8 + 2.2 * (count / top) ** 0.5:.2f}em;margin:0 .25em">'
                    f"{html.escape(word)}</span>" for word, count in sorted(words))
    return HTML(f'<div lang="ar" dir="rtl" style="font-family:{FONT};line-height:1.6;text-align:center">{spans}</div>')


def colour_of(experiment):
    """Return the experiment's colour: the same in every figure."""
    return COLOURS.get(experiment, "#56B4E9")


def new_figure(width=6.0, height=3.5, columns=1, rows=1):
    """Return (figure, axes) in the book's style."""
    import matplotlib
    import matplotlib.pyplot as plt

    version = tuple(int(part) for part in matplotlib.__version__.split(".")[:2])
    if version < (3, 11):
        raise RuntimeError(f"matplotlib {matplotlib.__version__} does not shape Arabic; install matplotlib 3.11 or newer")
    plt.rcParams.update({"figure.dpi": 120, "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
                         "savefig.facecolor": "white"})
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")


def save_figure(figure, run, name, rows, of_model=True):
    """Save a figure as PNG and its numbers as CSV in the run's figures folder, signed with the profile that made it.

    A figure `of_model` from a CPU profile is signed as the twin's.
    """
    run.figures.mkdir(parents=True, exist_ok=True)
    profile = run.root.name
    twin = ", CPU twin" if of_model and profile not in GPU_PROFILES else ""
    figure.text(1, -0.01, f"profile {profile}{twin}", ha="right", va="top", fontsize=6, color="#666666")
    figure.savefig(run.figures / f"{name}.png", dpi=160, bbox_inches="tight")
    text = io.StringIO()
    csv.writer(text).writerows([list(rows[0]), *(row.values() for row in rows)])
    write_text(run.figures / f"{name}.csv", text.getvalue())


def percent(entry):
    """Return a share with its interval as text: '84.2 [81.6, 86.5]'."""
    return f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def interval(entry, digits=2):
    """Return a value with its interval as text."""
    return f"{entry['value']:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"


def p_value(p):
    """Return a p-value as text: three decimals, or '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
