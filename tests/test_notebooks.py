"""The form of the lessons: what a reader, a reviewer and the site rely on."""
import ast
import json
import re
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
ALL = sorted(str(p.relative_to(NBS)) for p in NBS.rglob('*.ipynb') if not any(part.startswith(('_', '.')) for part in p.relative_to(NBS).parts))
LESSONS = [n for n in ALL if re.match(r'\d\d_', n)]
MODULES = [n for n in ALL if n.startswith('api/')]
EXERCISES = [n for n in ALL if n.startswith('exercises/')]
EXPORTING = LESSONS + MODULES
URL = 'https://github.com/chestnb/chestnb'


def cells(name, kind=None):
    book = nbformat.read(NBS/name, as_version=4)
    return [c for c in book.cells if kind is None or c.cell_type == kind]


def prose(name): return '\n\n'.join(c.source for c in cells(name, 'markdown'))


def figures(name):
    "Code cells with a picture in their outputs."
    return [c for c in cells(name, 'code') if any('image/png' in o.get('data', {}) for o in c.outputs)]


def test_the_published_numbers_are_there():
    assert [n[:2] for n in LESSONS][:11] == ['00', '01', '02', '03', '04', '05', '06', '07', '08', '09', '10']


@pytest.mark.parametrize('name', ALL)
def test_opens_with_title_and_subtitle(name):
    first = cells(name, 'markdown')[0].source
    assert re.match(r'# \S.*\n\n?> \S[^\n]*(\n|$)', first), first


@pytest.mark.parametrize('name', LESSONS)
def test_says_what_is_built_needed_and_exported(name):
    text = prose(name)
    for word in ('What you will build', 'What you need', '**Time.**', '**Exports**'): assert word in text, word
    assert text.count('<details>') >= 3 and text.count('<details>') == text.count('</details>')


@pytest.mark.parametrize('name', ALL)
def test_is_small_and_has_clean_outputs(name):
    assert (NBS/name).stat().st_size < 1_000_000
    code = cells(name, 'code')
    assert any(c.outputs for c in code) or name in MODULES + EXERCISES, 'no saved outputs'
    for number, cell in enumerate(code):
        assert len(cell.source.splitlines()) <= 35, f'code cell {number} is too long'
        for output in cell.outputs:
            assert output.output_type != 'error', f'code cell {number} ends in an error'
            assert output.get('name') != 'stderr', f'code cell {number} keeps stderr'
            assert not re.search(r'/(root|home|tmp|work|Users)/', json.dumps(output)), f'code cell {number} shows a machine path'


@pytest.mark.parametrize('name', LESSONS)
def test_prose_and_code_are_about_even(name):
    code = [c for c in cells(name, 'code') if not c.source.startswith('#| hide')]
    ratio = len(cells(name, 'markdown'))/len(code)
    assert ratio > .45, f'{ratio:.2f} prose cells for each code cell'


@pytest.mark.parametrize('name', ALL)
def test_every_figure_has_alt_text(name):
    for cell in figures(name): assert '#| fig-alt:' in cell.source, cell.source[:120]


def test_one_notebook_one_module():
    names = {n: m for n in ALL for c in cells(n, 'code') for m in re.findall(r'^#\| default_exp (\S+)', c.source, re.M)}
    assert len(names) == len(set(names.values())), 'two notebooks export the same module: the second would overwrite the first'
    assert set(names) == set(EXPORTING)
    assert all(names[n] == n[4:-6].replace('/', '.') for n in MODULES), 'a module notebook lies where its module lies'


def mixes_imports(source):
    "nbdev runs every cell that holds an import when it builds the pages, so that such a cell holds nothing else."
    if source.startswith('#| eval: false'): return False
    try: body = ast.parse('\n'.join('pass' if re.match(r'\s*[!%]', line) else line for line in source.splitlines())).body
    except SyntaxError: return False
    if re.match(r'#\| *exports?\b', source): return {isinstance(node, (ast.Import, ast.ImportFrom)) for node in body} == {True, False}
    imports = [node for part in body for node in ast.walk(part) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return bool(imports) and not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


@pytest.mark.parametrize('name', ALL)
def test_imports_stand_in_cells_of_their_own(name):
    mixed = [c.source[:60] for c in cells(name, 'code') if mixes_imports(c.source)]
    assert not mixed, mixed


@pytest.mark.parametrize('name', ALL)
def test_nothing_speaks_of_the_old_appendices(name):
    "0.1 had appendices A1 to A14; they are module notebooks now, and are called by what they hold."
    text = '\n'.join(c.source for c in cells(name))
    assert not re.search(r'\b[Aa]ppendix A\d|\ba1?\d_\w+\.ipynb|\[A1?\d\b', text)


@pytest.mark.parametrize('name', MODULES)
def test_a_module_notebook_exports_and_checks(name):
    code = [c.source for c in cells(name, 'code')]
    exported = [s for s in code if re.match(r'#\| exports?\b', s)]
    tests = [s for s in code if s not in exported and re.search(r'\b(test_\w+\(|assert\b)', s)]
    assert exported and (tests or name in ('api/all.ipynb',)), f'{len(exported)} exports, {len(tests)} cells that check'


@pytest.mark.parametrize('name', ALL)
def test_links_to_files_resolve(name):
    for target in re.findall(r'\]\(([^)#\s]+)', prose(name)):
        if not re.match(r'[a-z]+:', target): assert ((NBS/name).parent/target).exists(), f'{target} is not there'


@pytest.mark.parametrize('name', LESSONS + EXERCISES)
def test_colab_cell(name):
    cell = next(c.source for c in cells(name, 'code') if 'Colab' in c.source)
    assert cell.startswith('#| eval: false') and f'{URL} ' in cell and '-c constraints.txt' in cell


def test_one_address_everywhere():
    "The repository's address is in settings.ini; notebooks, README and badges use that one."
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini')
    assert settings['DEFAULT']['git_url'] == URL
    texts = [p.read_text(encoding='utf-8') for p in [ROOT/'README.md', *NBS.rglob('*.ipynb')]]
    found = {u for t in texts for u in re.findall(r'github(?:\.com|/)([\w-]*/?chestnb)/(?:chestnb|blob)', t)}
    assert found <= {'chestnb', '/chestnb', 'chestnb/chestnb', '/chestnb/chestnb'}, found


def test_index_has_a_colab_badge_for_every_lesson():
    text = prose('index.ipynb')
    for name in LESSONS: assert f'colab.research.google.com/github/chestnb/chestnb/blob/main/nbs/{name}' in text, name
