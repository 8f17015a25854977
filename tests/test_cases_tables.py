"""Small inputs that real users bring: the tables and layouts of shared/cases, each read as its README says is right."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import FINDINGS
from chestnb.data.official import lists_split, read_split
from chestnb.data.parts import images_in, shared_patients
from chestnb.data.tables import read_metadata

MAKER = Path(__file__).resolve().parents[2]/'shared'/'cases'/'make_cases.py'
NAMES = [f'{p:08}_{k:03}.png' for p in (101, 102, 103, 104) for k in (0, 1)]
LABELS = [set(), {'Effusion'}, {'Effusion', 'Mass'}, set(), {'Cardiomegaly'}, {'Hernia', 'Edema'}, set(), {'Pneumothorax'}]


@pytest.fixture(scope='session')
def cases(tmp_path_factory):
    "The folder of cases, made anew."
    if not MAKER.exists(): pytest.skip('the maker of the cases is not here (looked for ../shared/cases/make_cases.py beside the repository)')
    out = tmp_path_factory.mktemp('cases')/'made'
    subprocess.run([sys.executable, str(MAKER), str(out)], check=True, capture_output=True)
    return out


def labels(table, row): return {name for name in FINDINGS if table[name].iloc[row] == 1}


@pytest.mark.parametrize('case', ['kaggle_header', 'one_hot', 'three_columns', 'text_patients', 'tabs', 'semicolons', 'partly_unknown', 'hospital_of_90_million'])
def test_tables_are_read_with_their_labels_and_patients(cases, case):
    table = ChestDataset(cases/'tables'/case).table
    names = [name.replace('00000', '90000') for name in NAMES] if case.startswith('hospital') else NAMES
    assert list(table.image) == names
    assert [labels(table, row) for row in range(8)] == LABELS
    assert table.patient_id.value_counts().tolist() == [2]*4 and table[list(FINDINGS)].dtypes.eq(bool).all()


def test_kaggle_header_has_ages_and_sizes(cases):
    table = ChestDataset(cases/'tables'/'kaggle_header').table
    assert table.age.tolist() == [40, 40, 41, 41, 42, 42, 43, 43] and set(table.width) == {64} and set(table.height) == {64}
    assert table.pixel_spacing_x.tolist() == [.143]*8 and table.pixel_spacing_y.tolist() == [.143]*8 and table.attrs['notes'] == []


@pytest.mark.parametrize('case', ['one_hot', 'three_columns'])
def test_columns_that_are_absent_are_unknown_and_said(cases, case):
    data = ChestDataset(cases/'tables'/case)
    assert data.table[['follow_up', 'age', 'sex', 'view_position', 'width']].isna().all().all()
    assert data.table.attrs['notes'] == ['unknown for all images: follow-up number, age, sex, view position']
    summary = data.summary()
    assert ('sex', 'F') not in summary.index and summary.loc[('sex', 'not known'), 'images'] == 8          # not "female 0 %"
    assert 'follow-up number' in summary.loc[('read', 'note 1'), 'note']


def test_text_patients_are_ids(cases):
    assert ChestDataset(cases/'tables'/'text_patients').table.patient_id.tolist()[::2] == ['P-101', 'P-102', 'P-103', 'P-104']


def test_labels_spelt_otherwise_and_an_empty_cell_is_unknown(cases):
    data = ChestDataset(cases/'tables'/'labels_spelt_otherwise')
    assert [labels(data.table, row) for row in (0, 1, 2, 4, 5, 6, 7)] == [
        set(), {'Effusion'}, {'Effusion', 'Mass'}, {'Cardiomegaly'}, {'Pleural_Thickening'}, set(), {'Pneumothorax'}]
    assert data.table['No Finding'].tolist()[0] == data.table['No Finding'].tolist()[6] == 1
    assert np.isnan(data.targets()[3]).all() and np.isnan(data.table['No Finding'][3]) and not np.isnan(data.targets()[[0, 1, 2, 4, 5, 6, 7]]).any()
    assert data.table.attrs['notes'] == ["no label at all: 1 image; unknown, not 'No Finding'"]


def test_partly_unknown_cells(cases):
    data = ChestDataset(cases/'tables'/'partly_unknown')
    table = data.table
    assert table.age.isna().tolist() == [True, False]*4 and table.age.tolist()[1::2] == [40, 41, 40, 41]
    assert table.sex.isna().tolist() == [True, False]*4 and table.sex.tolist()[1::2] == ['F', 'M', 'F', 'M']
    assert table.view_position.isna().tolist() == [False, True, False, False]*2 and table.view_position.tolist()[2] == 'AP'
    assert table.attrs['notes'] == ['unknown: age of 4 images, sex of 4 images, view position of 2 images']
    assert data.summary().images[[('sex', 'F'), ('sex', 'M'), ('sex', 'not known')]].tolist() == [2, 2, 4]


def test_chexpert_points_to_its_importer(cases):
    with pytest.raises(UserError, match=r'is a table of CheXpert.*chestnb_import .*chexpert --to'): ChestDataset(cases/'tables'/'chexpert')


def test_a_hospital_whose_ids_start_at_90_million_is_real(cases):
    data = ChestDataset(cases/'tables'/'hospital_of_90_million')
    assert (data.is_synthetic, data.title_note) == (False, 'real') and '8 real images of 4 patients' in repr(data)


def test_kaggles_224_folder_and_its_lists(cases):
    data = ChestDataset(cases/'layouts'/'kaggle224')
    assert len(data) == 8 and data.check_images(progress=False) == 8
    split = lists_split(data.path, data.table, valid_fraction=.34)
    assert images_in(split, 'test') == NAMES[6:] and sorted(images_in(split, 'train') + images_in(split, 'valid')) == NAMES[:6]
    assert not shared_patients(split).size
    pd.testing.assert_frame_equal(split, read_split(data.path/'test_list_NIH.txt', data.table, valid_fraction=.34))


def test_a_part_of_the_images_names_the_option_of_the_command(cases):
    with pytest.raises(UserError, match=r'row 6: the image .* --on_mismatch drop'): ChestDataset(cases/'layouts'/'part_of_it')
    data = ChestDataset(cases/'layouts'/'part_of_it', on_mismatch='drop')
    assert list(data.table.image) == NAMES[:4] and data.missing == NAMES[4:]


def test_exif_orientation_stands_the_chest_upright(cases):
    data = ChestDataset(cases/'layouts'/'exif')
    turned, upright = (np.asarray(data.open_image(name), float) for name in data.table.image[:2])
    assert turned.shape == upright.shape and np.corrcoef(turned.ravel(), upright.ravel())[0, 1] > .9


@pytest.mark.parametrize('test_list, reason', [('', 'is empty'), ('zzz.png\n', 'names none of these images')])
def test_a_test_list_without_images_is_no_split(cases, tmp_path, test_list, reason):
    table = ChestDataset(cases/'layouts'/'kaggle224').table
    (tmp_path/'train_val_list.txt').write_text('\n'.join(table.image))
    (tmp_path/'test_list.txt').write_text(test_list)
    with pytest.raises(UserError, match=f'the list of the test images {reason}'): lists_split(tmp_path, table)


def test_lists_with_labels_behind_the_names_are_lists_of_names(cases, tmp_path):
    table = ChestDataset(cases/'layouts'/'kaggle224').table
    (tmp_path/'train_val_list.txt').write_text(''.join(f'{name} 0 1 0\n' for name in table.image[:6]))
    (tmp_path/'test_list.txt').write_text(''.join(f'{name},0,0,1\n' for name in table.image[6:]))
    assert lists_split(tmp_path, table, valid_fraction=.34).query("part == 'test'").image.tolist() == table.image[6:].tolist()


def test_decisions_of_a_model_are_no_labels(tmp_path):
    (tmp_path/'data.csv').write_text('Image Index,prob_Mass,prob_Edema\na.png,0,1\nb.png,1,0\n')
    with pytest.raises(UserError, match="missing column 'Finding Labels'"): read_metadata(tmp_path/'data.csv')
