"Files that belong together are written together or not at all."
import os

import pytest

from chestnb.core.files import write_text, written_together


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
