"""The DICOM files of ../shared/cases: each is one real user's oddity, and each is read with the right numbers."""
import importlib.util

import numpy as np
import pytest

from chestnb.data.dataset import ChestDataset
from chestnb.data.dicom import describe_dicom, read_dicom


@pytest.fixture(scope='module')
def cases(root, tmp_path_factory):
    "The DICOM cases, made by their own program, and the pixels that went into them."
    path = root.parent/'shared/cases/make_cases.py'
    if not path.is_file(): pytest.skip('the shared cases are not here (looked in ../shared/cases beside the repository)')
    spec = importlib.util.spec_from_file_location('make_cases', path)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    drawn, draw = [], maker.pixels
    maker.pixels = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    import pydicom
    mode = pydicom.config.settings.writing_validation_mode
    try: maker.dicoms(out := tmp_path_factory.mktemp('cases'))
    finally: pydicom.config.settings.writing_validation_mode = mode
    names = [line.split(',')[0] for line in (out/'dicom/data.csv').read_text().splitlines()[1:]]
    return out/'dicom', {name: pixels.astype(float)*16 for name, pixels in zip(names, drawn)}


def greys(cases, name): return np.asarray(read_dicom(cases[0]/'images'/name)).astype(int)


def full_range(stored):
    "Grey from the darkest to the brightest pixel."
    return np.rint(255*(stored - stored.min())/(stored.max() - stored.min()))


@pytest.mark.parametrize('name', ['plain.dcm', 'window_width_zero.dcm', 'body_part_torax.dcm', 'body_part_unknown.dcm', 'no_ending', 'no_transfer_syntax.dcm', 'sex_o_view_blank.dcm'])
def test_files_without_a_window_show_the_range_of_their_pixels(cases, name):
    assert np.array_equal(greys(cases, name), full_range(cases[1][name]))


@pytest.mark.parametrize('name', ['voi_function_empty.dcm', 'voi_function_unknown.dcm'])
def test_windows_of_an_empty_or_unknown_function_are_linear(cases, name):
    expected = np.rint(255*np.clip((cases[1][name] - 1999.5)/2999 + .5, 0, 1))       # PS3.3 C.11.2.1.2: centre 2000, width 3000
    assert np.array_equal(greys(cases, name), expected)


def test_unsigned_padding_is_black_and_sets_no_range(cases):
    stored, got = cases[1]['unsigned_padding.dcm'], greys(cases, 'unsigned_padding.dcm')
    assert (got[:8] == 0).all() and np.array_equal(got[8:], full_range(stored[8:]))


def test_one_burnt_in_pixel_does_not_turn_the_chest_black(cases):
    stored, got = cases[1]['one_burnt_in_pixel.dcm'], greys(cases, 'one_burnt_in_pixel.dcm')
    rest = np.ones(stored.shape, bool)
    rest[0, 0] = False
    assert got[0, 0] == 255 and np.abs(got - full_range(np.where(rest, stored, stored[1, 1])))[rest].max() <= 1 and np.median(got) > 100


@pytest.mark.parametrize('name,note', [('window_width_zero.dcm', 'the window 2000/0 cannot be used'), ('voi_function_unknown.dcm', "its function 'LINEAR_' is not in the standard"),
                                       ('body_part_unknown.dcm', "its body part 'UNKNOWN' is not known here"), ('no_transfer_syntax.dcm', 'its transfer syntax is missing'), ('plain.dcm', 'none')])
def test_what_was_odd_is_said(cases, name, note):
    said = describe_dicom(cases[0]/'images'/name)
    assert note in said['notes'] and said['refused'] == 'no'


def test_the_folder_of_all_of_them_is_a_data_set(cases):
    dataset = ChestDataset(cases[0])
    table = dataset.table.set_index('image')
    assert len(dataset) == 11 and {'no_ending', 'no_transfer_syntax.dcm'} <= set(table.index)
    odd, plain = table.loc['sex_o_view_blank.dcm'], table.loc['plain.dcm']
    assert odd[['sex', 'view_position', 'age']].isna().all() and (plain.sex, plain.view_position, plain.age) == ('F', 'PA', 50)
    assert table.patient_id.nunique() == 11 and dataset.open_image('no_ending').size == (64, 64)
