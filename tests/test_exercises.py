"""Exercises: every solution passes its check; every blank and every typical wrong answer is refused with a sentence."""
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from make_exercises import MADE, SOURCES, Cell, differing, read_cells

EVERY = sorted(SOURCES.glob('*.py'))


@pytest.fixture(autouse=True)
def beside_the_notebooks(monkeypatch):
    "Exercises run where their notebooks lie, and without data of whoever runs the tests."
    monkeypatch.chdir(MADE)
    for name in ('CHESTNB_DATA', 'CHESTNB_PREDICTIONS'):
        if os.environ.get(name, '').startswith('.'): monkeypatch.delenv(name)


def answered(cells, replace):
    "The code to run: each exercise with the answer that `replace(number, blank, solution, wrong ones)` chooses, in a list of (kind, number, code)."
    code, number, group = [], 0, {}
    for cell in cells:
        if cell.kind == 'code': code.append(('code', number, cell.source))
        elif cell.kind == 'blank': number, group = number + 1, {'blank': cell, 'wrong': []}
        elif cell.kind == 'solution': group['solution'] = cell
        elif cell.kind == 'wrong': group['wrong'].append(cell)
        elif cell.kind == 'check': code += [('answer', number, replace(number, group).source), ('check', number, cell.source)]
    return code


def run(code):
    "Run cells in order; returns what each check said: {number: message, or None where it passed}."
    said, names = {}, {'__name__': '__main__'}
    for kind, number, source in code:
        try: exec(compile(source, f'<{kind} {number}>', 'exec'), names)
        except AssertionError as error:
            if kind != 'check': raise
            said[number] = str(error)
        else:
            if kind == 'check': said.setdefault(number, None)
    return said


def is_a_sentence(text): return isinstance(text, str) and len(text.split()) >= 4


def test_notebooks_are_what_their_sources_make():
    assert not differing(), 'run: make readme'


@pytest.mark.parametrize('source', EVERY, ids=lambda p: p.stem)
def test_at_least_two_exercises_with_a_hint(source):
    kinds = [c.kind for c in read_cells(source)]
    assert kinds.count('blank') >= 2 and kinds.count('hint') >= kinds.count('blank') and kinds.count('wrong') >= kinds.count('blank')


@pytest.mark.parametrize('source', EVERY, ids=lambda p: p.stem)
def test_every_solution_passes_its_check(source):
    said = run(answered(read_cells(source), lambda number, group: group['solution']))
    assert said and not any(said.values()), said


@pytest.mark.parametrize('source', EVERY, ids=lambda p: p.stem)
def test_every_blank_is_refused_with_a_sentence(source):
    cells = read_cells(source)
    for wanted in range(1, sum(c.kind == 'blank' for c in cells) + 1):
        said = run(answered(cells, lambda number, group: group['blank' if number == wanted else 'solution'])[:])
        assert is_a_sentence(said[wanted]), f'exercise {wanted}: {said[wanted]!r}'


@pytest.mark.parametrize('source', EVERY, ids=lambda p: p.stem)
def test_typical_wrong_answers_are_refused_with_a_sentence(source):
    cells = read_cells(source)
    groups = answered(cells, lambda number, group: Cell('all', group['wrong']))
    for number, wrong in [(n, w) for kind, n, w in groups if kind == 'answer' for w in w]:
        said = run(answered(cells, lambda n, group: wrong if n == number else group['solution']))
        assert is_a_sentence(said[number]), f'exercise {number}, {wrong.why}: {said[number]!r}'


def test_a_source_in_another_order_is_refused(tmp_path):
    path = tmp_path/'x.py'
    path.write_text('# %% [markdown]\n# # Exercises\n# %% [solution]\na = 1\n# %% [check]\nassert a\n')
    with pytest.raises(ValueError, match='blank, solution'): read_cells(path)
    path.write_text('# %% [magic]\n')
    with pytest.raises(ValueError, match=r'\[magic\]'): read_cells(path)
