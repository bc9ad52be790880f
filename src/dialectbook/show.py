"""What a reader sees: tables, right-to-left text and figures, safe for text that models or data wrote."""

import csv
import html
import io
import re

from .data import DIACRITICS, DIALECTS
from .files import write_text
from .hardware import GPU_PROFILES
from .knobs import experiments

ARABIC = re.compile("[\u0600-\u06ff]")
LATIN = re.compile(r"[<(]?[A-Za-z][\x21-\x27\x2a-\x7e]*[>)]?")
ARABIC_RUN = re.compile("[\u0600-\u06ff]+(?:[ \u060c]+[\u0600-\u06ff]+)*")
FONT = "'Noto Naskh Arabic', 'Amiri', 'Geeza Pro', 'Segoe UI', 'Traditional Arabic', 'DejaVu Sans', serif"
ARABIC_HTML = f'<bdi lang="ar" dir="rtl" style="font-family:{FONT};font-size:1.1em">{{}}</bdi>'
COLOURS = {"base": "#666666", "base_tagged": "#B0B0B0", "no_token": "#0072B2", "token": "#D55E00", "paper": "#000000",
           "HIJAZI": "#009E73", "NAJDI": "#CC79A7"}  # Okabe and Ito, safe for colour-blind readers
MARKERS = {"base": "s", "base_tagged": "v", "no_token": "o", "token": "^", "paper": "D", "base_in_words": "<", "no_token_tagged": "P",
           "no_token_in_words": "h", "no_token_again": "8", "token_untagged": "d", "token_swapped": "X", "token_in_words": ">", "token_again": "p"}
NAMES = {"base": "Base", "base_tagged": "Base, tagged", "base_in_words": "Base, in words", "no_token": "No-Token", "no_token_tagged": "No-Token, tagged",
         "no_token_in_words": "No-Token, in words", "no_token_again": "No-Token, again", "token": "Token", "token_untagged": "Token, no tag",
         "token_swapped": "Token, wrong tag", "token_in_words": "Token, in words", "token_again": "Token, again", "HIJAZI": "Hijazi", "NAJDI": "Najdi"}


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
    """Return an HTML table of a list of dicts (an IPython HTML object); wide tables scroll inside their own box.

    Without rows it says so: what the table compares was not asked or not run in this profile.
    """
    from IPython.display import HTML

    if not rows:
        return paragraphs(f"{caption or 'Table'}: nothing to show, since this profile does not ask it.")
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


def filter_table(rows, filters, caption="", name="claims"):
    """Return an HTML table of a list of dicts that a reader filters in the page: a search box, and a menu per column of `filters`.

    A few lines of script in the page do it; no server is asked, and without scripts the whole table shows.
    """
    from IPython.display import HTML

    columns = list(rows[0])
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f'<td{" class=long" if len(str(row[c])) > 60 else ""} dir="auto">{cell(row[c])}</td>' for c in columns) + "</tr>"
                   for row in rows)
    menus = "".join(f'<label>{html.escape(column)} <select data-column="{columns.index(column)}"><option value="">all</option>'
                    + "".join(f"<option>{html.escape(value)}</option>" for value in sorted({str(row[column]) for row in rows})) + "</select></label> "
                    for column in filters)
    script = f"""<script>(() => {{
  const box = document.getElementById("db-{name}"), lines = [...box.querySelectorAll("tbody tr")];
  const show = () => {{
    const words = box.querySelector("input").value.toLowerCase().split(/\\s+/);
    let left = 0;
    for (const line of lines) {{
      const text = line.textContent.toLowerCase();
      const fits = words.every(word => text.includes(word)) && [...box.querySelectorAll("select")].every(
        menu => !menu.value || line.cells[menu.dataset.column].textContent === menu.value);
      line.hidden = !fits;
      left += fits;
    }}
    box.querySelector("output").textContent = left + " of " + lines.length;
  }};
  box.addEventListener("input", show);
  show();
}})();</script>"""
    return HTML(f'<div id="db-{name}" class="db-filter"><p><label>search <input type="search"></label> {menus}<output></output></p>'
                f'<div class="db-table" style="overflow-x:auto"><table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div></div>{script}")


def word_cloud(counts, largest=40):
    """Return the most frequent words as HTML, size by the square root of the count, right to left in a real font."""
    from IPython.display import HTML

    words = counts.most_common(largest)
    top = words[0][1]
    spans = " ".join(f'<span title="{count:,}" style="font-size:{0.8 + 2.2 * (count / top) ** 0.5:.2f}em;margin:0 .25em">'
                    f"{html.escape(word)}</span>" for word, count in sorted(words))
    return HTML(f'<div lang="ar" dir="rtl" style="font-family:{FONT};line-height:1.6;text-align:center">{spans}</div>')


def colour_of(experiment):
    """Return the experiment's colour, the same in every figure: that of the model that answers; the marker tells how it was asked."""
    model = experiments().get(experiment, {}).get("model_of", experiment)
    return COLOURS.get(experiment) or COLOURS.get(model, "#56B4E9")


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
    """Return a share with its interval as text, in percent: '84.2 [81.6, 86.5]'."""
    return interval(entry, 1, 100)


def interval(entry, digits=2, scale=1):
    """Return a value with its interval, times `scale`, as text; None, which a table shows as a dash, where there is no value."""
    if entry["value"] is None:
        return None
    value, low, high = (f"{scale * entry[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def errors(entries, scale=1):
    """Return how far intervals reach below and above their values, times `scale`, as matplotlib's error bars want it: shape (2, entries)."""
    return [[scale * (one["value"] - one["low"]) for one in entries], [scale * (one["high"] - one["value"]) for one in entries]]


def points(value):
    """Return a difference of shares as text, in points with its sign: '+3.5'."""
    return f"{100 * value:+.1f}"


def p_value(p):
    """Return a p-value as text: three decimals, or '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
