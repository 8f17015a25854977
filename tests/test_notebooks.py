"""The form of the lessons: what a reader, a reviewer and the site rely on."""
import json
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
ALL = sorted(p.name for p in NBS.glob('[!_.]*.ipynb'))
LESSONS = [n for n in ALL if re.match(r'\d\d_', n)]
EXPORTING = [n for n in ALL if re.match(r'(\d\d|a\d+)_', n)]
URL = 'https://github.com/chestnb/chestnb'


def cells(name, kind=None):
    book = nbformat.read(NBS/name, as_version=4)
    return [c for c in book.cells if kind is None or c.cell_type == kind]


def prose(name): return '\n\n'.join(c.source for c in cells(name, 'markdown'))


def figures(name):
    "Code cells with a picture in their outputs."
    return [c for c in cells(name, 'code') if any('image/png' in o.get('data', {}) for o in c.outputs)]


def test_the_published_numbers_are_there():
    assert [n[:2] for n in LESSONS][:9] == ['00', '01', '02', '03', '04', '05', '06', '07', '08']


@pytest.mark.parametrize('name', ALL)
def test_opens_with_title_and_subtitle(name):
    first = cells(name, 'markdown')[0].source
    assert re.match(r'# \S.*\n\n?> \S[^\n]*\s*$', first), first


@pytest.mark.parametrize('name', EXPORTING)
def test_says_what_is_built_needed_and_exported(name):
    text = prose(name)
    for word in ('What you will build', 'What you need', 'Time and hardware', 'Exports'): assert word in text, word
    for heading in ('## Recap', '## Questions', '## Further reading'): assert heading in text, heading
    assert text.count('<details>') >= 3 and text.count('<details>') == text.count('</details>')


@pytest.mark.parametrize('name', ALL)
def test_is_small_and_has_clean_outputs(name):
    assert (NBS/name).stat().st_size < 1_000_000
    code = cells(name, 'code')
    assert any(c.outputs for c in code), 'no saved outputs'
    for number, cell in enumerate(code):
        assert len(cell.source.splitlines()) <= 35, f'code cell {number} is too long'
        for output in cell.outputs:
            assert output.output_type != 'error', f'code cell {number} ends in an error'
            assert output.get('name') != 'stderr', f'code cell {number} keeps stderr'
            assert not re.search(r'/(root|home|tmp|work|Users)/', json.dumps(output)), f'code cell {number} shows a machine path'


@pytest.mark.parametrize('name', EXPORTING)
def test_prose_and_code_are_about_even(name):
    code = [c for c in cells(name, 'code') if not c.source.startswith('#| hide')]
    ratio = len(cells(name, 'markdown'))/len(code)
    assert ratio > .45, f'{ratio:.2f} prose cells for each code cell'


@pytest.mark.parametrize('name', ALL)
def test_every_figure_has_alt_text(name):
    for cell in figures(name): assert '#| fig-alt:' in cell.source, cell.source[:120]


def test_one_notebook_one_module():
    names = [m for n in ALL for c in cells(n, 'code') for m in re.findall(r'^#\| default_exp (\S+)', c.source, re.M)]
    assert len(names) == len(set(names)), 'two notebooks export the same module: the second would overwrite the first'
    assert len(names) == len(EXPORTING)


def test_sidebar_lists_every_notebook():
    listed = set(re.findall(r'- (\S+\.(?:ipynb|qmd))', (NBS/'sidebar.yml').read_text()))
    assert listed == set(ALL) | {p.name for p in NBS.glob('*.qmd')}


@pytest.mark.parametrize('name', ALL)
def test_links_to_files_resolve(name):
    for target in re.findall(r'\]\(([^)#\s]+)', prose(name)):
        if not re.match(r'[a-z]+:', target): assert (NBS/target).exists(), f'{target} is not there'


@pytest.mark.parametrize('name', LESSONS)
def test_colab_cell(name):
    cell = next(c.source for c in cells(name, 'code') if 'Colab' in c.source)
    assert cell.startswith('#| eval: false') and f'{URL} ' in cell and '-c constraints.txt' in cell


def test_one_address_everywhere():
    "The repository's address is in settings.ini; notebooks, README and badges use that one."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini')
    assert settings['DEFAULT']['git_url'] == URL
    texts = [p.read_text(encoding='utf-8') for p in [ROOT/'README.md', *NBS.glob('*.ipynb')]]
    found = {u for t in texts for u in re.findall(r'github(?:\.com|/)([\w-]*/?chestnb)/(?:chestnb|blob)', t)}
    assert found <= {'chestnb', '/chestnb', 'chestnb/chestnb', '/chestnb/chestnb'}, found


def test_index_has_a_colab_badge_for_every_lesson():
    text = prose('index.ipynb')
    for name in LESSONS: assert f'colab.research.google.com/github/chestnb/chestnb/blob/main/nbs/{name}' in text, name
