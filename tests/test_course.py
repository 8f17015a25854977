"""Real X-rays in the lessons: found where they may be, said in one line, and never committed."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestnb.core.errors import UserError
from chestnb.core.files import write_text
from chestnb.data import course
from chestnb.data.drawing import finding_text, show_findings
from chestnb.data.provenance import NIH_PROVENANCE, PHANTOM_PROVENANCE, write_provenance

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A data set of two images; a third one is in its table only."
    monkeypatch.delenv('CHESTNB_DATA', raising=False)
    (tmp_path/'nih'/'images').mkdir(parents=True)
    for name in 'ab': Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path/'nih'/'images'/f'{name}.png')
    write_text(tmp_path/'nih'/'data.csv', 'Image Index,Finding Labels,Patient ID\na.png,Mass|Pleural_Thickening,1\nb.png,,2\nc.png,Mass,2\n')
    return tmp_path/'nih'


def test_nothing_is_found_and_the_reader_learns_how_to_add_some(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('CHESTNB_DATA', raising=False)
    monkeypatch.setattr(course, 'real_folder', lambda: None)
    assert course.real_dataset() is None
    said = capsys.readouterr().out
    assert 'CHESTNB_DATA' in said and 'chestnb_chestmnist --to' in said and max(map(len, said.splitlines())) < 120


def test_a_named_folder_is_found_and_its_path_is_not_shown(folder, monkeypatch, capsys):
    monkeypatch.setenv('CHESTNB_DATA', str(folder))
    found, said = course.real_dataset(), capsys.readouterr().out
    assert len(found) == 2 and said.count('\n') == 1
    assert '2 real images' in said and '1 image of its table not on disk' in said and str(folder.parent) not in said


def test_a_fetched_folder_is_found_from_below_only_with_its_statement(folder, monkeypatch):
    monkeypatch.chdir(folder/'images')
    assert course.real_folder() != folder
    write_provenance(folder, NIH_PROVENANCE)
    assert course.real_folder() == folder
    write_provenance(folder, PHANTOM_PROVENANCE)
    assert course.real_folder() != folder


def test_a_wrong_name_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv('CHESTNB_DATA', str(tmp_path/'nowhere'))
    with pytest.raises(UserError, match='unset the variable'): course.real_dataset()


def test_titles_say_findings_source_and_what_is_unknown(folder):
    dataset = course.ChestDataset(folder, on_mismatch='drop')
    assert [finding_text(dataset, name) for name in ('a.png', 'b.png')] == ['Mass, Pleural Thickening', 'unknown']
    figure = show_findings(dataset, ['a.png', 'b.png', 'a.png'], 'Three', columns=2)
    assert figure.get_suptitle() == 'Three (real)' and len(figure.axes) == 4
    assert show_findings(dataset, ['a.png'], titles=['A']).axes[0].get_title() == 'A'


def test_no_committed_output_is_of_a_readers_images():
    "Outputs are made without real data: no lesson and no exercise says that it found some."
    books = [*(ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'), *(ROOT/'nbs'/'exercises').glob('[0-9][0-9]_*.ipynb')]
    assert books
    for path in books: assert 'Real X-rays found' not in path.read_text(encoding='utf-8'), path.name
