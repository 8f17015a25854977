"""Small inputs that real users bring: the tables and layouts of shared/cases, each read as its README says is right."""
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestnb.core.errors import UserError
from chestnb.core.files import write_text
from chestnb.data.boxes import read_boxes
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import FINDINGS
from chestnb.data.import_tables import ImportRules
from chestnb.data.importers import import_source
from chestnb.data.official import lists_split, read_split
from chestnb.data.parts import images_in, shared_patients
from chestnb.data.tables import NIH_HEADER, read_metadata
from chestnb.evaluation.localisation import box_pairs

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


# ---- images in folders of their own

def in_folders(root, header, rows, under='images'):
    "A table, and an image at every path."
    (root/'data.csv').parent.mkdir(parents=True, exist_ok=True)
    (root/'data.csv').write_text('\n'.join([header, *(','.join(cells) for _, cells in rows)]) + '\n')
    for k, (path, _) in enumerate(rows):
        (root/under/path).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (6, 5), 10*k + 10).save(root/under/path)
    return root


PATIENTS = [(f'patient{p:05}/study1/view{k}.jpg', p) for p in (1, 2) for k in (1, 2)]


@pytest.mark.parametrize('under', ['images', '.'])
@pytest.mark.parametrize('column', ['Image Index', 'Path', 'filename'])
def test_images_in_patient_folders_are_told_the_command_that_imports_them(tmp_path, under, column):
    root = in_folders(tmp_path/'source', f'{column},Finding Labels,Patient ID', [(path, [path, ('Mass', 'Edema')[p % 2], str(p)]) for path, p in PATIENTS], under)
    with pytest.raises(UserError) as told: ChestDataset(root)
    command = shlex.split(str(told.value).split('Import them: ')[1].replace('NEW_FOLDER', str(tmp_path/'new')))
    assert 'such as ' in str(told.value) and command[:2] == ['chestnb_import', str(root/'data.csv')]
    rules = dict(zip((option.removeprefix('--') for option in command[4::2]), command[5::2]))
    data, _ = import_source(command[1], command[3], ImportRules(**rules), progress=False)        # the command works as it stands
    assert len(data) == 4 and data.table.patient_id.tolist() == [1, 1, 2, 2] and [data.open_image(name).getpixel((0, 0)) for name in data.table.image] == [10, 20, 30, 40]


def test_plain_names_of_images_in_folders_too(tmp_path):
    root = in_folders(tmp_path/'source', 'Image Index,Patient ID,Mass,Edema', [(f'{k:05}/{k:04}.png', [f'{k:04}.png', str(k), str(k % 2), '0']) for k in range(4)])
    with pytest.raises(UserError, match=r"is not in .*such as images/00000/0000.png.*--image 'Image Index' --patient 'Patient ID' --labels Mass,Edema"): ChestDataset(root)
    with pytest.raises(UserError, match='is on disk.*chestnb_import'): ChestDataset(root, on_mismatch='drop')


def test_an_error_about_something_else_says_nothing_of_folders(tmp_path):
    root = in_folders(tmp_path/'source', 'Image Index,Finding Labels,Patient Age', [('a/a.png', ['a.png', 'Mass', 'old'])])
    with pytest.raises(UserError) as told: ChestDataset(root)
    assert 'chestnb_import' not in str(told.value)


# ---- boxes

def boxes_of(tmp_path, text): return read_boxes(write_text(tmp_path/'boxes.csv', text))


@pytest.mark.parametrize('header', ['image_id,class_name,x_min,y_min,x_max,y_max', 'image,label,xmin,ymin,xmax,ymax', 'Image Index,Finding Label,X1,Y1,X2,Y2', 'path,finding,x0,y0,x1,y1',
                                    'image,label,Left,Top,Right,Bottom'])
def test_boxes_with_corners_by_their_header(tmp_path, header):
    assert boxes_of(tmp_path, f'{header}\na.png,Mass,10,20,40,60\nb.png,Edema,0,0,1.5,2\n').values.tolist() == [['a.png', 'Mass', 10, 20, 30, 40], ['b.png', 'Edema', 0, 0, 1.5, 2]]


def test_corners_beside_the_size_of_the_image_are_corners(tmp_path):
    assert boxes_of(tmp_path, 'image_id,class_name,x_min,y_min,x_max,y_max,width,height\na.png,Mass,10,20,40,60,512,512\n').values.tolist() == [['a.png', 'Mass', 10, 20, 30, 40]]


@pytest.mark.parametrize('cell', ['"[10, 20, 30, 40]"', '"(10.0,20,30,40)"', '10 20 30 40', '"10,20,30,40"'])
def test_boxes_in_one_cell(tmp_path, cell):
    assert boxes_of(tmp_path, f'image_id,category,bbox\na.png,Mass,{cell}\n').values.tolist() == [['a.png', 'Mass', 10, 20, 30, 40]]
    assert boxes_of(tmp_path, f'image_id,category,"bbox [x1,y1,x2,y2]"\na.png,Mass,{cell}\n').values.tolist() == [['a.png', 'Mass', 10, 20, 20, 20]]


@pytest.mark.parametrize('text, reason', [
    ('image,label,xmin,ymin,xmax,ymax\na.png,Mass,1,1,5,5\na.png,Mass,40,20,10,60\n', 'row 3: x_max is 10, which is not more than x_min, 40'),
    ('image,label,xmin,ymin,xmax,ymax\na.png,Mass,1,20,10,20\n', 'row 2: y_max is 20, which is not more than y_min, 20'),
    ('image,label,xmin,ymin,xmax,ymax\na.png,Mass,1,,10,20\n', "row 2: column 'y_min': '' is not a coordinate"),
    ('image,label,xmin,ymin,xmax,ymax,x,y,w,h\na.png,Mass,1,1,2,2,1,1,1,1\n', 'holds corners and x, y, width, height'),
    ('image,label,xmin,ymin,xmax,ymax,x1,y1,x2,y2\na.png,Mass,1,1,2,2,1,1,1,1\n', 'could each be the corners'),
    ('image,label,bbox\na.png,Mass,"[1,2,3]"\n', "row 2: column 'bbox': '[1,2,3]' is not four numbers"),
    ('image,label,x_center,y_center,width,height\na.png,Mass,5,5,2,2\n', 'x_min,y_min,x_max,y_max'),
    ('image,label,x,y,w,h\na.png,Mass,.25,.3,.1,.2\n', 'shares of the image, where pixels are expected')])
def test_boxes_that_leave_a_choice_are_refused(tmp_path, text, reason):
    with pytest.raises(UserError) as told: boxes_of(tmp_path, text)
    assert reason in str(told.value)


def test_a_box_that_is_there_twice_counts_once_and_rows_keep_their_numbers(tmp_path):
    root = in_folders(tmp_path/'data', 'Image Index,Finding Labels,Patient ID', [('a.png', ['a.png', 'Mass', '1']), ('b.png', ['b.png', 'Mass', '2'])])
    (root/'boxes.csv').write_text('image,label,x,y,w,h\n' + 'a.png,Mass,1,1,2,2\n'*3 + 'b.png,Mass,0,0,2.0,2\n' + 'b.png,Mass,0,0,2,2\nb.png,Mass,0,0,3,2\n')
    data = ChestDataset(root)
    assert data.boxes.index.tolist() == [2, 5, 7] and box_pairs(data.boxes, data.table).boxes.tolist() == [1, 2]
    note = 'boxes.csv: left out: 3 boxes that are there twice'
    assert note in data.table.attrs['notes'] and note in data.summary().note.tolist()
    (root/'boxes.csv').write_text('image,label,x,y,w,h\n' + 'a.png,Mass,1,1,2,2\n'*2 + 'b.png,Mass,0,0,9,9\n')
    with pytest.raises(UserError, match='row 4: the box reaches past'): ChestDataset(root)


READINGS = ('image_id,class_name,rad_id,x_min,y_min,x_max,y_max\na.png,Mass,R1,1,1,7,7\na.png,Mass,R2,2,2,8,8\na.png,Mass,R3,2,3,9,7\na.png,Edema,R1,0,0,9,9\na.png,Edema,R1,0,0,9,9\n'
            'b.png,No finding,R1,,,,\nb.png,No finding,R2,,,,\nb.png,Mass,R3,0,0,5,5\nc.png,No finding,R1,,,,\n')


@pytest.mark.parametrize('rule, kept', [
    ('any', [['a.png', 'Mass', 1, 1, 6, 6], ['a.png', 'Mass', 2, 2, 6, 6], ['a.png', 'Mass', 2, 3, 7, 4], ['a.png', 'Edema', 0, 0, 9, 9], ['b.png', 'Mass', 0, 0, 5, 5]]),
    ('majority', [['a.png', 'Mass', 2, 2, 5, 5], ['a.png', 'Mass', 2, 3, 6, 4]]),               # R1 and R2; R2 and R3; R1 and R3 lie in the first
    ('all', [['a.png', 'Mass', 2, 3, 5, 4]])])
def test_boxes_of_several_readers_follow_the_named_rule(tmp_path, rule, kept):
    frame = read_boxes(write_text(tmp_path/'boxes.csv', READINGS), readers=rule)
    assert frame.values.tolist() == kept
    assert frame.attrs['notes'][-1].startswith('boxes.csv: boxes of up to 3 readers of an image: ' + ('all are kept' if rule == 'any' else f'joined by {rule}'))
    marked = np.zeros((3, 10, 10), int)                         # the same by counting pixels
    for k, (x0, y0, x1, y1) in enumerate([(1, 1, 7, 7), (2, 2, 8, 8), (2, 3, 9, 7)]): marked[k, y0:y1, x0:x1] = 1
    area = np.zeros((10, 10), bool)
    for image, finding, x, y, w, h in frame.values.tolist():
        if finding == 'Mass' and image == 'a.png': area[int(y):int(y + h), int(x):int(x + w)] = True
    assert (area == (marked.sum(0) >= {'any': 1, 'majority': 2, 'all': 3}[rule])).all()


def test_without_a_rule_all_readers_are_kept_and_that_is_said(tmp_path):
    frame = read_boxes(write_text(tmp_path/'boxes.csv', READINGS))
    assert len(frame) == 5 and frame.attrs['notes'][0] == 'boxes.csv: left out: 1 box that is there twice' and 'all are kept (5 drawn, 5 kept)' in frame.attrs['notes'][1]
    with pytest.raises(UserError, match="readers='best': expected one of 'any', 'majority', 'all'"): read_boxes(tmp_path/'boxes.csv', readers='best')


# ---- one more of each kind: what stands around the cells

def changed(tmp_path, change):
    "NIH's table of eight rows, changed; its images."
    rows = [f'{name},{"|".join(sorted(found)) or "No Finding"},{k % 2},{101 + k//2},{40 + k//2},{"MF"[k//2 % 2]},{("PA", "AP")[k % 2]},64,64,0.143,0.143' for k, (name, found) in enumerate(zip(NAMES, LABELS))]
    (tmp_path/'images').mkdir(parents=True)
    for name in NAMES: Image.new('L', (64, 64)).save(tmp_path/'images'/name)
    (tmp_path/'data.csv').write_bytes(change('\n'.join([NIH_HEADER, *rows]) + '\n'))
    return tmp_path


@pytest.mark.parametrize('change', [
    lambda text: f'# exported 2024-01-01\n# by hand\n\n# a, b\n{text}'.encode(), lambda text: f'\n\r\n{text}'.encode(), lambda text: f'sep=;\r\n{text.replace(",", ";")}'.encode('utf-8-sig'),
    lambda text: text.encode('utf-16-le'), lambda text: text.encode('utf-16-be'), lambda text: text.replace(',', '\t').encode('utf-16'),
    lambda text: text.replace('\n', ',,\n').encode(), lambda text: text.replace('\n', '\r').encode(), lambda text: text.replace(',', ', ').encode(),
    lambda text: ''.join(','.join(f'"{cell}"' for cell in line.split(',')) + '\n' for line in text.splitlines()).encode()])
def test_what_stands_around_the_cells_changes_nothing(tmp_path, change):
    plain = ChestDataset(changed(tmp_path/'plain', str.encode)).table
    pd.testing.assert_frame_equal(ChestDataset(changed(tmp_path/'other', change)).table, plain)


def test_thousands_separators_of_sizes(tmp_path):
    data = ChestDataset(changed(tmp_path/'data', lambda text: text.replace(',64,64,', ',"2,500",2048,').encode()))
    assert set(data.table.width) == {2500} and set(data.table.height) == {2048}


@pytest.mark.parametrize('change, reason', [
    (lambda text: f'Our patients{"," * 10}\n{text}'.encode(), "row 1: is 'Our patients' alone, and row 2 has 11 cells. Delete what stands above the header."),
    (lambda text: (text + text).encode(), 'row 10: is the header again. Were two files joined?'),
    (lambda text: text.encode() + b'\0\0\0', 'holds zero bytes, so it is damaged'),
    (lambda text: text.replace(',64,64,', ',"20,48",64,').encode(), "'20,48' is not a whole number")])
def test_what_is_damaged_or_ambiguous_is_refused_with_its_cause(tmp_path, change, reason):
    with pytest.raises(UserError) as told: ChestDataset(changed(tmp_path/'data', change))
    assert reason in str(told.value)


def test_a_header_that_begins_with_a_hash_is_a_header(tmp_path):
    (tmp_path/'data.csv').write_text('#,Image Index,Finding Labels\n1,a.png,Mass\n')
    assert read_metadata(tmp_path/'data.csv').image.tolist() == ['a.png']
    (tmp_path/'data.csv').write_text('# Image Index,Finding Labels\na.png,Mass\n')
    assert read_metadata(tmp_path/'data.csv').image.tolist() == ['a.png']


@pytest.mark.parametrize('line', ['"{}"', "'{}'", ' {} ', 'images/{}'])
def test_lists_of_names_as_others_write_them(cases, tmp_path, line):
    table = ChestDataset(cases/'layouts'/'kaggle224').table
    (tmp_path/'train_val_list.txt').write_text(''.join(line.format(name) + '\r\n' for name in table.image[:6]))
    (tmp_path/'test_list.txt').write_text('\ufeff' + ''.join(line.format(name) + '\n' for name in table.image[6:]), encoding='utf-8')
    assert lists_split(tmp_path, table, valid_fraction=.34).query("part == 'test'").image.tolist() == table.image[6:].tolist()


@pytest.mark.parametrize('word', ['val', 'Validation', 'DEV', 'valid'])
def test_words_for_the_validation_part(cases, tmp_path, word):
    table = ChestDataset(cases/'layouts'/'kaggle224').table
    (tmp_path/'split.csv').write_text('image;split\n' + ''.join(f'{name};{"Training" if k < 4 else word if k < 6 else "TEST"}\n' for k, name in enumerate(table.image)))
    assert read_split(tmp_path/'split.csv', table).part.tolist() == ['train']*4 + ['valid']*2 + ['test']*2
