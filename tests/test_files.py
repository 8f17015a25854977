"Files are whole or absent, folders keep what is not ours, locks end with their holder, texts say the same everywhere."
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import chestnb.core.files as core_files
from chestnb.core.errors import ListedError, UserError
from chestnb.core.files import (MANIFEST, checksum_of_table, escape_cell, kept_files, read_csv, read_json, remove_temporaries, temporary_name, temporary_of,
    temporary_sibling, unescape_cell, whole_folder, write_csv, write_text, written_together)
from chestnb.core.locks import LOCK_FILES, file_lock, folder_lock, is_empty_folder
from chestnb.core.text import interval_text, listed, number_text, plural

nan = float('nan')


def contents(folder): return {path.name: path.read_text() for path in folder.iterdir()}


def write(folder, text, names=('a', 'b', 'c')):
    with written_together(folder, ('a', 'b', 'c')) as new:
        for name in names: write_text(new/name, f'{name}{text}')


def test_all_are_written_and_nothing_else(tmp_path):
    (tmp_path/'other').write_text('stays')
    for text in '12':
        write(tmp_path, text)
        assert contents(tmp_path) == {'a': f'a{text}', 'b': f'b{text}', 'c': f'c{text}', 'other': 'stays'}


@pytest.mark.parametrize('there', [(), ('a',), ('b', 'c'), ('a', 'b', 'c')])
@pytest.mark.parametrize('names', [('a', 'b'), ('b', 'c'), ('a', 'c'), ()])
def test_a_file_that_was_not_written_leaves_the_old_ones(tmp_path, there, names):
    for name in there: (tmp_path/name).write_text(f'{name} old')
    with pytest.raises(FileNotFoundError): write(tmp_path, 'new', names)
    assert contents(tmp_path) == {name: f'{name} old' for name in there}


def test_an_interruption_leaves_the_old_ones(tmp_path):
    write(tmp_path, 'old')
    with pytest.raises(KeyboardInterrupt), written_together(tmp_path, ('a', 'b', 'c')) as new:
        write_text(new/'a', 'new')
        raise KeyboardInterrupt
    assert contents(tmp_path) == {'a': 'aold', 'b': 'bold', 'c': 'cold'}


def test_permissions_are_the_usual_ones(tmp_path):
    write(tmp_path, 'x')
    (tmp_path/'plain').write_text('')
    assert os.stat(tmp_path/'a').st_mode == os.stat(tmp_path/'plain').st_mode


# Temporary names


def test_threads_and_containers_do_not_share_a_temporary_name(tmp_path, monkeypatch):
    "Every first process of a container is number 1, and all threads of a process have one number."
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    inside = threading.Barrier(8)
    def job(n):
        with temporary_sibling(tmp_path/'a') as temporary:
            temporary.write_text(f'{n}'*5000)
            inside.wait(30)              # all of them hold a temporary file of the same name's at this moment
    with ThreadPoolExecutor(8) as pool: list(pool.map(job, range(8)))
    assert re.fullmatch(r'(\d)\1{4999}', (tmp_path/'a').read_text()) and [p.name for p in tmp_path.iterdir()] == ['a']


def test_litter_of_a_killed_process_is_recognised_old_form_too(tmp_path):
    for name in (temporary_name('data.csv'), '.data.csv.4711.tmp', temporary_name('.hidden'), '.data.csv', 'data.csv.tmp', '.thesis.tmp'): (tmp_path/name).touch()
    assert sorted(temporary_of(path) for path in tmp_path.iterdir() if temporary_of(path)) == ['.hidden', 'data.csv', 'data.csv']
    remove_temporaries(tmp_path, lambda name: name == 'data.csv')
    assert sorted(temporary_of(p) or p.name for p in tmp_path.iterdir()) == ['.data.csv', '.hidden', '.thesis.tmp', 'data.csv.tmp']


# CSV


TEXTS = st.text(st.one_of(st.sampled_from('=+-@\t\r\n\'",;0123456789.e '), st.characters(codec='utf-8', exclude_characters='\0')), max_size=8)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_every_cell_comes_back_and_none_is_run(text):
    escaped = escape_cell(text)
    assert unescape_cell(escaped) == text
    if escaped[:1] in tuple('=+-@\t\r') and escaped: float(escaped)     # only a number may begin like that


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=5), TEXTS.filter(bool))
def test_names_with_commas_quotes_and_formulas_are_read_back(texts, column):
    import tempfile
    frame = pd.DataFrame({column: texts, 'prob': np.linspace(-1, 1, len(texts))}) if column != 'prob' else pd.DataFrame({column: texts})
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(Path(folder)/'t.csv', frame)
        back = read_csv(path, dtype={escape_cell(column): str}, keep_default_na=False)
        assert list(back.columns) == list(frame.columns) and back[column].tolist() == texts
        again = write_csv(Path(folder)/'u.csv', back)
        assert path.read_bytes() == again.read_bytes()


def test_row_labels_and_headers_are_escaped_numbers_are_not(tmp_path):
    frame = pd.DataFrame({'=a': [-1.5, 2], 'b': ['-1.5', '-x'], 'c': pd.Categorical(['@u', 'v']), 'd': [True, False]}, index=pd.Index(['=x', 'y'], name='+i'))
    text = write_csv(tmp_path/'t.csv', frame, index=True).read_text()
    assert text == "+i,'=a,b,c,d\n'=x,-1.5,-1.5,'@u,True\ny,2.0,'-x,v,False\n" or text == "'+i,'=a,b,c,d\n'=x,-1.5,-1.5,'@u,True\ny,2.0,'-x,v,False\n"
    assert frame.index[0] == '=x' and frame.columns[0] == '=a'           # the caller's table is as it was


def test_the_readers_of_tables_take_the_apostrophe_away(tmp_path, embedded):
    from chestnb.data.tables import read_metadata, write_metadata
    table = read_metadata(embedded/'data.csv').iloc[:5].reset_index(drop=True)
    names = ['=1+1.png', "'=2.png", '-a,b.png', '@c"d.png', '+e.png']
    write_metadata(table.assign(image=names), tmp_path/'data.csv')
    assert read_metadata(tmp_path/'data.csv').image.tolist() == names
    assert not re.search(r'(?m)^"?[=+@-]', (tmp_path/'data.csv').read_text())


# Checksums and JSON


def test_a_checksum_of_rows_knows_no_order_and_no_types():
    frame = pd.DataFrame({'image': list('abc'), 'Mass': [True, False, True], 'age': [1, nan, 3]})
    same = [frame.iloc[[2, 0, 1]], frame[['age', 'image', 'Mass']], frame.astype({'Mass': float}), frame.astype({'Mass': 'boolean', 'age': 'Int64'}),
            frame.set_axis([5, 6, 7]), frame.assign(age=[1, None, 3]), frame.astype({'image': 'category'})]
    assert {checksum_of_table(one) for one in same} == {checksum_of_table(frame)}
    other = [frame.assign(Mass=[True, True, False]), frame.assign(age=[1, 2, 3]), frame.rename(columns={'Mass': 'Nodule'}), frame.iloc[:2],
             pd.concat([frame, frame.iloc[:1]]), frame.assign(age=[nan, 1, 3])]
    assert len({checksum_of_table(one) for one in other} | {checksum_of_table(frame)}) == len(other) + 1
    assert re.fullmatch('[0-9a-f]{16}', checksum_of_table(frame))


@pytest.mark.parametrize('content, reason', [(None, 'there is no such file'), (b'', 'cannot be read'), (b'{"a": ', 'cannot be read'), (b'\xff\xfe\x00', 'cannot be read'),
                                             (b'[1]', 'holds list'), (b'null', 'holds NoneType'), (b'['*100_000, 'cannot be read')])
def test_json_that_cannot_be_used_is_a_sentence(tmp_path, content, reason):
    if content is not None: (tmp_path/'x.json').write_bytes(content)
    with pytest.raises(UserError, match=rf'x\.json: {reason}[^\n]*Expected the thing'): read_json(tmp_path/'x.json', 'the thing')


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path/'x.json').write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path/'x.json', 'the thing') == {'a': 1}


# Whole folders


def report(out, score='1', files=()):
    with whole_folder(out, 'a report', fill_in=('card.md',)) as fresh:
        write_text(fresh/'card.md', 'to be filled in')
        write_text(fresh/'tables'/'score.csv', score)
        for name, text in files: write_text(fresh/name, text)


def tree(folder): return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*') if p.is_file() and p.name != MANIFEST}
def around(folder): return sorted(p.name for p in folder.parent.iterdir() if p.name != folder.name)


def test_a_filled_in_card_and_added_files_survive_a_second_report(tmp_path):
    out = tmp_path/'report'
    report(out)
    assert tree(out) == {'card.md': 'to be filled in', 'tables/score.csv': '1'} and kept_files(out) == []
    (out/'card.md').write_text('for teaching')
    (out/'notes').mkdir()
    (out/'notes'/'mine.txt').write_text('mine')
    (out/'link').symlink_to('notes/mine.txt')
    for score in '123':
        report(out, score)
        assert tree(out) == {'card.md': 'for teaching', 'card.new.md': 'to be filled in', 'tables/score.csv': score, 'notes/mine.txt': 'mine', 'link': 'mine'}
        assert (out/'link').is_symlink() and around(out) == []
        assert kept_files(out) == ['card.md', 'link', 'notes/mine.txt']


def test_a_changed_number_is_kept_beside_the_new_one(tmp_path):
    out = tmp_path/'report'
    report(out)
    for score, mine in (('2', 'a'), ('3', 'b')):
        (out/'tables'/'score.csv').write_text(mine)
        report(out, score)
    assert tree(out) == {'card.md': 'to be filled in', 'tables/score.csv': '3', 'tables/score.kept.csv': 'a', 'tables/score.kept2.csv': 'b'}


def test_what_a_new_report_no_longer_has_goes_unless_changed(tmp_path):
    out = tmp_path/'report'
    report(out, files=[('old.png', 'x'), ('edited.png', 'x')])
    (out/'edited.png').write_text('mine')
    report(out)
    assert tree(out) == {'card.md': 'to be filled in', 'tables/score.csv': '1', 'edited.png': 'mine'}


@pytest.mark.parametrize('make', [lambda out: (out/'thesis.txt').write_text('years'), lambda out: (out/MANIFEST).write_text('{'), lambda out: (out/'sub').mkdir()])
def test_a_folder_of_somebody_else_is_refused_before_any_work(tmp_path, make):
    out = tmp_path/'report'
    out.mkdir()
    make(out)
    before, worked = tree(out), []
    with pytest.raises(UserError, match='left alone|cannot be read'):
        with whole_folder(out): worked.append(1)
    assert not worked and tree(out) == before and around(out) == []


def test_an_empty_folder_and_a_file(tmp_path):
    (tmp_path/'empty').mkdir()
    report(tmp_path/'empty')
    assert tree(tmp_path/'empty')
    (tmp_path/'file').write_text('x')
    with pytest.raises(UserError, match='is a file'): report(tmp_path/'file')
    assert (tmp_path/'file').read_text() == 'x'


def test_a_folder_behind_a_link_is_replaced_where_it_is(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'out').symlink_to(tmp_path/'disk')
    for score in '12': report(tmp_path/'out', score)
    assert (tmp_path/'out').is_symlink() and tree(tmp_path/'disk')['tables/score.csv'] == '2'


def test_a_failure_inside_leaves_the_old_folder_and_no_litter(tmp_path):
    out = tmp_path/'report'
    report(out)
    with pytest.raises(ZeroDivisionError), whole_folder(out) as fresh:
        write_text(fresh/'half', 'x')
        1/0
    assert tree(out) == {'card.md': 'to be filled in', 'tables/score.csv': '1'} and around(out) == []


STEPS = [('os', 'replace'), ('shutil', 'copy2'), ('shutil', 'rmtree'), ('core_files', 'write_json'), ('core_files', 'exchange'), ('core_files', 'remove_replaced'),
         ('core_files', 'carry_over'), ('core_files', 'files_in'), ('os', 'unlink'), ('os', 'fsync')]


@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('module, name', STEPS)
def test_an_interruption_at_any_step_leaves_old_or_new(tmp_path, monkeypatch, module, name, when):
    "Ctrl-C before or after each call of each step: the user's files are there, and the old or the new report is whole."
    holder = dict(os=os, shutil=shutil, core_files=core_files)[module]
    real, number = getattr(holder, name), 0
    old = {'card.md': 'mine', 'tables/score.csv': '1', 'notes.txt': 'mine'}
    new = {'card.md': 'mine', 'card.new.md': 'to be filled in', 'tables/score.csv': '2', 'notes.txt': 'mine'}
    interrupted = True
    while interrupted:
        number, calls, interrupted = number + 1, [], False
        out = tmp_path/f'{number}'/'report'
        report(out)
        write_text(out/'card.md', 'mine'), write_text(out/'notes.txt', 'mine')
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) != number: return real(*args, **kwargs)
            try:
                if when == 'after': real(*args, **kwargs)
            finally: raise KeyboardInterrupt
        monkeypatch.setattr(holder, name, call)
        try: report(out, '2')
        except KeyboardInterrupt: interrupted = True
        monkeypatch.setattr(holder, name, real)
        assert tree(out) in (old, new)
        report(out, '2')                   # and the next run is as ever
        assert tree(out) == new and around(out) == []
    assert number > 1, 'the step was never interrupted'


KILLED = '''
import os, signal, sys
import chestnb.core.files as files
real, calls = os.replace, []
def replace(*paths):
    calls.append(paths)
    if 'report' in map(os.path.basename, map(str, paths)) and sum('report' in map(os.path.basename, map(str, p)) for p in calls) == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
    return real(*paths)
os.replace = replace
with files.whole_folder(sys.argv[1], fill_in=('card.md',)) as fresh:
    files.write_text(fresh/'card.md', 'to be filled in')
    files.write_text(fresh/'tables'/'score.csv', '2')
'''


@pytest.mark.parametrize('call', [1, 2])
def test_kill_9_between_the_renames_loses_nothing(tmp_path, call):
    out = tmp_path/'report'
    report(out)
    (out/'card.md').write_text('mine')
    assert subprocess.run([sys.executable, '-c', KILLED, str(out), str(call)]).returncode == -signal.SIGKILL
    old = {'card.md': 'mine', 'tables/score.csv': '1'}
    assert old in [tree(path) for path in tmp_path.iterdir() if path.is_dir()]       # whole, if perhaps under its temporary name
    with pytest.raises(ZeroDivisionError), whole_folder(out): 1/0                    # the next run puts it back, even if it fails itself
    assert tree(out) == old and around(out) == []
    report(out, '2')
    assert tree(out)['card.md'] == 'mine' and tree(out)['tables/score.csv'] == '2'


def test_a_file_saved_into_the_old_folder_at_the_last_moment_stays(tmp_path, monkeypatch):
    out, real = tmp_path/'report', core_files.exchange
    report(out)
    def exchange(path, fresh, old):
        (path/'late.txt').write_text('late')
        return real(path, fresh, old)
    monkeypatch.setattr(core_files, 'exchange', exchange)
    with pytest.warns(UserWarning, match='late.txt changed while it was replaced'): report(out, '2')
    assert [p.read_text() for p in tmp_path.rglob('late.txt')] == ['late']


def test_two_reports_into_one_folder_do_not_mix(tmp_path):
    with whole_folder(tmp_path/'out', 'the first report'):
        with pytest.raises(UserError, match=r'out: the first report \(process \d+ on .* is at work here'):
            with whole_folder(tmp_path/'out', 'the second'): pass


# Locks


def test_a_lock_is_gone_with_its_holder(tmp_path):
    code = 'import sys, time\nfrom chestnb.core.locks import folder_lock\nwith folder_lock(sys.argv[1], "a long run"):\n    print("here", flush=True)\n    time.sleep(60)'
    holder = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == 'here\n'
    with pytest.raises(UserError, match=rf'a long run \(process {holder.pid} on .*, since 20\d\d-.*\) is at work here'):
        with folder_lock(tmp_path, 'another', patience=.1): pass
    assert is_empty_folder(tmp_path) and {p.name for p in tmp_path.iterdir()} == set(LOCK_FILES)
    holder.kill()
    holder.communicate()
    with folder_lock(tmp_path, 'another', patience=0): pass
    assert list(tmp_path.iterdir()) == []


def test_threads_of_one_process_exclude_each_other(tmp_path):
    inside, most = [], []
    def job(n):
        with folder_lock(tmp_path, f'thread {n}', patience=60):
            inside.append(n)
            most.append(len(inside))
            time.sleep(.01)
            inside.remove(n)
    with ThreadPoolExecutor(8) as pool: list(pool.map(job, range(8)))
    assert max(most) == 1 and len(most) == 8 and list(tmp_path.iterdir()) == []


def test_a_note_that_cannot_be_read_does_not_hide_the_refusal(tmp_path):
    with file_lock(tmp_path/'x.lock', 'work'):
        (tmp_path/'x.lock.json').write_text('[')
        with pytest.raises(UserError, match='another process is at work here'):
            with file_lock(tmp_path/'x.lock', 'work', patience=0): pass


def test_a_place_that_cannot_be_locked_is_a_sentence(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(UserError, match='cannot be locked'):
        with folder_lock(tmp_path/'file', 'work', patience=0): pass


# Text


@pytest.mark.parametrize('items, most, text', [('', 3, ''), ('ab', 3, 'a, b'), ('abc', 3, 'a, b, c'), ('abcd', 3, 'a, b, c and 1 more'), (range(3000), 2, '0, 1 and 2,998 more')])
def test_listed(items, most, text): assert listed(items, most) == text


@pytest.mark.parametrize('given, text', [((.8379, .8311, .8428), '0.838 [0.831, 0.843]'), ((nan, .1, .2), 'no score'), ((None, None, None), 'no score'), ((.5, nan, .6), '0.500'),
    ((.5, None, None), '0.500'), ((-.0001, -.0002, .0002), '0.000 [0.000, 0.000]'), ((1, 1, 1), '1.000'), ((np.float32(.25), .2, np.nan), '0.250')])
def test_an_interval_is_written_in_one_way(given, text): assert interval_text(*given) == text


@settings(max_examples=200, deadline=None)
@given(st.floats(-10, 10), st.integers(0, 5), st.sampled_from(['', '+']), st.booleans())
def test_zero_has_no_sign_and_everything_else_is_python(value, digits, sign, percent):
    text = number_text(value, digits, sign, percent)
    assert float(text.rstrip('%')) == float(f'{value*(100 if percent else 1):.{digits}f}') or abs(value) > 0
    assert not re.fullmatch(r'[+-]0*\.?0*%?', text)
    if value > 1: assert text.startswith('+') == (sign == '+')


def test_plural(): assert [plural(n, 'image') for n in (0, 1, 2050)] == ['0 images', '1 image', '2,050 images'] and plural(2, 'study', 'studies') == '2 studies'


def test_a_listed_error_comes_back_whole_from_another_process():
    import pickle
    error = pickle.loads(pickle.dumps(ListedError('two', pd.DataFrame({'image': ['a', 'b']}))))
    assert str(error) == 'two' and error.cases.image.tolist() == ['a', 'b'] and isinstance(error, UserError)
