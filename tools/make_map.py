"""The map of the modules in CONTRIBUTING.md, made from the notebooks: python tools/make_map.py

A module's line is the subtitle of its notebook, so that map, page and module say the same.
"""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS, START, END = ROOT/'nbs', '<!-- map: made by `make readme` -->\n', '<!-- end of the map -->\n'
PACKAGES = {'core': 'Core', 'data': 'Data', 'model': 'Model', 'evaluation': 'Evaluation', 'using': 'Using', 'commands': 'Commands'}


def modules():
    "Module -> (notebook, subtitle), in the order of the layers."
    found = {}
    for path in NBS.rglob('*.ipynb'):
        if any(part.startswith(('_', '.')) for part in path.relative_to(NBS).parts): continue
        cells = nbformat.read(path, as_version=4).cells
        name = next((m[1] for c in cells for m in [re.match(r'#\| default_exp (\S+)', c.source)] if m), None)
        if name: found[name] = path.relative_to(NBS), re.search(r'^> (.+)$', cells[0].source, re.M)[1].rstrip('.')
    order = list(PACKAGES)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0].split('.')[0]) if item[0].split('.')[0] in order else 9, item[0])))


def map_text():
    "One table a package."
    tables = []
    for package, title in [*PACKAGES.items(), ('all', 'All')]:
        rows = [f'| `{name}` | [{path.with_suffix("").as_posix()}](nbs/{path.as_posix()}) | {text} |' for name, (path, text) in modules().items() if name.split('.')[0] == package]
        if rows: tables.append(f'**{title}**\n\n| module | notebook | what is in it |\n|---|---|---|\n' + '\n'.join(rows) + '\n')
    return START + '\n' + '\n'.join(tables) + '\n' + END


def contributing_text():
    "CONTRIBUTING.md with today's map."
    before, rest = (ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8').split(START)
    return before + map_text() + rest.split(END)[1]


if __name__ == '__main__':
    (ROOT/'CONTRIBUTING.md').write_text(contributing_text(), encoding='utf-8')
