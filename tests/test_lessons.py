"""The contract of a lesson: short, shown, questioned, with exercises. See CONTRIBUTING.md, 'Writing a lesson'."""
import re
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).resolve().parent.parent/'nbs'
LESSONS = sorted(p.stem for p in NBS.glob('[0-9][0-9]_*.ipynb'))
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
SET_UP = re.compile(r'#\| (eval: false|default_exp|hide)|\s*(import|from) ')
READING_WORDS, READING_CELL = 150, .6   # Words a minute, and minutes for each code cell: how the stated reading time is worked out
# Words that a native editor took out
UNUSUAL = r'\b(iller|ill|the well|nobody.s illness|a find|finds of|our business|shall want|in the large|placements?|falsely marked|usual place)\b'


def cells(stem, kind=None):
    return [c for c in nbformat.read(NBS/f'{stem}.ipynb', as_version=4).cells if kind in (None, c.cell_type)]


def prose(stem): return '\n\n'.join(c.source for c in cells(stem, 'markdown'))


def exports(stem): return [c.source for c in cells(stem, 'code') if re.match(r'#\| exports?\b', c.source) and not SET_UP.match(c.source.split('\n', 1)[-1])]


def in_words(text): return len(re.sub(r'<[^>]+>|\]\([^)]*\)|[#>*|`$-]', ' ', text).split())


@pytest.mark.parametrize('stem', LESSONS)
def test_thirty_to_sixty_code_cells_of_at_most_25_lines(stem):
    code = cells(stem, 'code')
    assert 30 <= len(code) <= 60
    long = [c.source[:60] for c in code if len(c.source.splitlines()) > 25]
    assert not long, long


@pytest.mark.parametrize('stem', LESSONS)
def test_at_most_a_quarter_exported_and_150_lines(stem):
    found = exports(stem)
    assert 0 < len(found) <= len(cells(stem, 'code'))/4, len(found)
    assert sum(len(s.splitlines()) for s in found) <= 150


@pytest.mark.parametrize('stem', LESSONS)
def test_central_code_is_visible_on_the_site(stem):
    hidden = [c.source[:80] for c in cells(stem, 'code') if re.match(r'#\| export\s*\n', c.source) and re.search(r'^(def|class|@)', c.source, re.M)]
    assert not hidden, hidden


@pytest.mark.parametrize('stem', LESSONS)
def test_half_of_the_code_shows_something(stem):
    code = [c for c in cells(stem, 'code') if not SET_UP.match(c.source) and c.source not in exports(stem)]
    assert sum(bool(c.outputs) for c in code) >= len(cells(stem, 'code'))/2, f'{sum(bool(c.outputs) for c in code)} of {len(cells(stem, "code"))}'


@pytest.mark.parametrize('stem', LESSONS)
def test_a_picture_within_fifteen_cells(stem):
    first = next(i for i, c in enumerate(cells(stem)) if c.cell_type == 'code' and any('image/png' in o.get('data', {}) for o in c.outputs))
    assert first < 15, f'first figure in cell {first}'


@pytest.mark.parametrize('stem', LESSONS)
def test_opens_with_a_question_and_says_the_time(stem):
    text = '\n'.join(c.source for c in cells(stem)[:6] if c.cell_type == 'markdown')
    assert '**Guess first.**' in text and '?' in text.split('**Guess first.**')[1][:900], 'a question that the reader can get wrong'
    assert BADGE in text and f'/nbs/{stem}.ipynb' in text, 'Colab badge'
    stated = re.search(r'\*\*Time\.\*\* About (\d+) minutes to read and (\d+) (seconds|minutes?) to run', text)
    assert stated, 'the line **Time.** About N minutes to read and M seconds|minutes to run ...'
    worked_out = in_words(prose(stem))/READING_WORDS + READING_CELL*len(cells(stem, 'code'))
    assert abs(int(stated[1]) - worked_out) <= .15*worked_out + 2, f'{stated[1]} stated, {worked_out:.0f} by words and cells'


@pytest.mark.parametrize('stem', LESSONS)
def test_ends_with_recap_questions_exercises_reading_and_the_next_lesson(stem):
    text = prose(stem)
    for heading in ('## Recap', '## Questions', '## Exercises', '## Further reading'): assert heading in text, heading
    assert f'exercises/{stem}_ex.ipynb' in text and f'exercises/{stem}_sol.ipynb' in text
    for kind in ('ex', 'sol'): assert (NBS/'exercises'/f'{stem}_{kind}.ipynb').is_file(), kind
    last = cells(stem, 'markdown')[-1].source
    position = LESSONS.index(stem)
    wanted = f'{LESSONS[position + 1]}.ipynb' if position + 1 < len(LESSONS) else 'index.ipynb'
    assert f'**Next:** [' in last and wanted in last, last


@pytest.mark.parametrize('stem', LESSONS)
def test_reads_like_a_native_editor_passed_over_it(stem):
    found = re.findall(rf'.{{0,40}}{UNUSUAL}.{{0,40}}', re.sub(r'`[^`]*`', '', prose(stem)), re.I)
    assert not found, found


@pytest.mark.parametrize('stem', LESSONS)
def test_no_cell_shows_a_very_wide_line(stem):
    wide = [line[:80] for c in cells(stem, 'code') for o in c.outputs for line in (o.get('text') or o.get('data', {}).get('text/plain', '')).splitlines() if 'text/html' not in o.get('data', {}) and len(line) > 160]
    assert not wide, wide
