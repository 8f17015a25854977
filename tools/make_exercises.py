"""Exercise and solution notebooks, both made from one source each: python tools/make_exercises.py [--check]

The source of lesson NN is tools/exercises/NN_name.py, a script in percent format with cells of these kinds:

# %% [markdown]      text, every line a comment; the first cell is '# Title' and '> subtitle'
# %%                 code that both notebooks show
# %% [hint]          text that unfolds
# %% [blank]         what the exercise shows instead of an answer
# %% [solution]      the answer, which only the solution notebook shows
# %% [wrong] why     a typical wrong answer: in no notebook; the tests see that the check refuses it
# %% [check]         assertions with a message that says what is wrong

An exercise is blank, solution, wrong ones if any, check. The outputs that a solution notebook holds are kept where its code stays the same.
"""
import re
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SOURCES, MADE = ROOT/'tools'/'exercises', ROOT/'nbs'/'exercises'
KINDS = ('markdown', 'code', 'hint', 'blank', 'solution', 'wrong', 'check')
SHOWN = {'ex': ('markdown', 'code', 'hint', 'blank', 'check'), 'sol': ('markdown', 'code', 'solution', 'check')}
REPOSITORY = 'https://github.com/chestnb/chestnb'
COLAB = f'''#| eval: false
# On Google Colab only: fetch the course with its exact versions, then restart the runtime once
!git clone --depth 1 {REPOSITORY} && cd chestnb && pip install -q -c constraints.txt -e '.[weights]'
%cd chestnb/nbs/exercises'''


@dataclass
class Cell:
    "One cell of a source."
    kind: str    # One of KINDS
    source: str  # Text of the cell, without comment signs where it is text
    why: str = '' # What is wrong with a wrong answer


def read_cells(path):
    "The cells of one source file."
    parts = re.split(r'^# %%[ \t]*(?:\[(\w+)\])?[ \t]*(.*)$', path.read_text(encoding='utf-8'), flags=re.M)
    cells = []
    for kind, why, text in zip(parts[1::3], parts[2::3], parts[3::3]):
        kind, text = kind or 'code', text.strip('\n')
        if kind not in KINDS: raise ValueError(f'{path.name}: cells of kind [{kind}] are not known; kinds: {", ".join(KINDS)}')
        if kind in ('markdown', 'hint'): text = '\n'.join(re.sub(r'^# ?', '', line) for line in text.splitlines())
        cells.append(Cell(kind, text, why.strip()))
    kinds = ''.join({'blank': 'b', 'solution': 's', 'wrong': 'w', 'check': 'c'}.get(c.kind, '') for c in cells)
    if not re.fullmatch(r'(bsw*c)+', kinds): raise ValueError(f'{path.name}: an exercise is blank, solution, wrong ones, check; found the order {kinds}')
    return cells


def lesson_of(stem):
    "Title of the lesson of that name."
    return re.match(r'# (.+)', nbformat.read(ROOT/'nbs'/f'{stem}.ipynb', as_version=4).cells[0].source)[1]


def links(stem, kind):
    "Badge and links under the title."
    badge = f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/chestnb/chestnb/blob/main/nbs/exercises/{stem}_{kind}.ipynb)'
    other = f'[Solutions]({stem}_sol.ipynb)' if kind == 'ex' else f'[The same with blanks]({stem}_ex.ipynb)'
    how = '\n\nReplace each `...` by your answer and run the check below it: it is silent when all is right, and says what is wrong when not.' if kind == 'ex' else ''
    return f'{badge}\n\nLesson: [{lesson_of(stem)}](../{stem}.ipynb) · {other}{how}'


def shown(cell, kind):
    "One cell as the notebook shows it."
    if cell.kind == 'hint': return nbformat.v4.new_markdown_cell(f'<details>\n<summary>Hint</summary>\n\n{cell.source}\n\n</details>')
    return nbformat.v4.new_markdown_cell(cell.source) if cell.kind == 'markdown' else nbformat.v4.new_code_cell(cell.source)


def notebook(path, kind):
    "The exercise ('ex') or solution ('sol') notebook of one source, without outputs."
    cells = [c for c in read_cells(path) if c.kind in SHOWN[kind]]
    title = cells[0].source.replace('# Exercises', '# Solutions') if kind == 'sol' else f'{cells[0].source}\n- skip_exec: true'
    book = nbformat.v4.new_notebook(metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}})
    book.cells = [nbformat.v4.new_markdown_cell(title), nbformat.v4.new_markdown_cell(links(path.stem, kind)), nbformat.v4.new_code_cell(COLAB),
                  *(shown(c, kind) for c in cells[1:])]
    for number, cell in enumerate(book.cells): cell['id'] = sha256(f'{path.stem} {kind} {number}'.encode()).hexdigest()[:8]
    return book


def with_outputs(book, path):
    "The notebook with the outputs that stand at the same code in the file of today."
    kept = {c.source: c.outputs for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code'} if path.is_file() else {}
    for cell in book.cells:
        if cell.cell_type == 'code': cell['outputs'] = kept.get(cell.source, [])
    return book


def wanted():
    "Path -> text of every notebook that the sources make, outputs of today included."
    targets = {MADE/f'{source.stem}_{kind}.ipynb': notebook(source, kind) for source in sorted(SOURCES.glob('*.py')) for kind in SHOWN}
    return {path: nbformat.writes(with_outputs(book, path), indent=1, ensure_ascii=False, sort_keys=True) + '\n' for path, book in targets.items()}


def differing():
    "Names of notebooks that are not what their source makes, or that have no source."
    texts = wanted()
    stray = {p for p in MADE.glob('*.ipynb')} - set(texts)
    return sorted(p.name for p in stray | {p for p, text in texts.items() if not p.is_file() or p.read_text(encoding='utf-8') != text})


if __name__ == '__main__':
    if '--check' in sys.argv: sys.exit(f'Not what the sources make: {", ".join(differing())}' if differing() else 0)
    MADE.mkdir(exist_ok=True)
    for path, text in wanted().items(): path.write_text(text, encoding='utf-8')
