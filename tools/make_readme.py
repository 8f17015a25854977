"""README.md from nbs/index.ipynb: the same text, with links that work from the top of the repository."""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: change the notebook, not this file. -->\n\n'
HIDDEN = re.compile(r'\s*#\|\s*(hide|default_exp|echo:\s*false)')


def from_top(text):
    "Links relative to nbs/ turned into links relative to the top of the repository."
    def moved(match):
        before, target = match.groups()
        if re.match(r'[a-z]+:|#|/', target): return match.group(0)
        return before + (target[3:] if target.startswith('../') else f'nbs/{target}')
    return re.sub(r'(\]\()([^)\s]+)', moved, text)


def plain_figures(text):
    "A figure of Quarto with caption and fig-alt as a picture with that alternative text and its caption below."
    return re.sub(r'!\[([^\]]*)\]\(([^)]+)\)\{[^}]*fig-alt="([^"]*)"[^}]*\}', lambda m: f'![{m[3]}]({m[2]})' + (f'\n\n*{m[1]}*' if m[1] else ''), text)


def output_text(output):
    "A saved output as Markdown."
    data = output.get('data', {})
    if 'text/markdown' in data: return from_top(data['text/markdown'])
    if 'text/html' in data: return data['text/html']
    return '\n'.join(f'    {line}' for line in (output.get('text') or data.get('text/plain', '')).splitlines())


def cell_text(cell):
    "One cell as Markdown; a hidden cell shows its outputs only."
    if cell.cell_type == 'markdown': return from_top(plain_figures(cell.source))
    code = '' if HIDDEN.match(cell.source) else f'```python\n{cell.source}\n```'
    return '\n\n'.join(part for part in [code, *map(output_text, cell.outputs)] if part)


def readme_text(notebook):
    "The whole README."
    cells = nbformat.read(notebook, as_version=4).cells
    return NOTE + '\n\n'.join(filter(None, map(cell_text, cells))).strip() + '\n'


if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme_text(ROOT/'nbs'/'index.ipynb'), encoding='utf-8')
