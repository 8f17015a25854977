"""Answers as DICOM objects: what is copied, what is mended, what other readers say of them."""
import builtins
import shutil
import subprocess
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from chestnb.core.errors import NOT_FOR_CLINICAL_USE, UserError
from chestnb.data.dicom import write_dicom
from chestnb.data.phantom.anatomy import Anatomy
from chestnb.data.phantom.cohort import render
from chestnb.using.capture import finding_cells, findings_picture
from chestnb.using.dicom_report import (COPIED, finding_code, FINDING_CODES, model_checksum, moment_of, reference_of, REPORT_TEXT,
    write_dicom_results)
from chestnb.using.runner import Answer

hd = pytest.importorskip('highdicom', reason='highdicom is not installed: pip install "chestnb[export]"')

FILM = render(Anatomy(seed=1), {'Effusion': .7}, size=96).image.astype(np.uint16)*16
PERSON = dict(PatientID='S-17', PatientName='Synthetic^Person', PatientBirthDate='19610412', PatientSex='F', StudyInstanceUID='1.2.3.4', SeriesInstanceUID='1.2.3.4.5',
              SOPInstanceUID='1.2.3.4.5.6', StudyDate='20260131', StudyTime='101500', StudyID='9', AccessionNumber='A7', StudyDescription='Thorax', PatientOrientation=['L', 'F'])
FINDINGS = ['Effusion', 'Hernia', 'Enlarged Cardiomediastinum']
SPEC = dict(name='example', made='2026-11-27T06:00:00Z', chestnb='0.2.0', synthetic=True, findings=FINDINGS, note=NOT_FOR_CLINICAL_USE, prevalence=dict.fromkeys(FINDINGS, .1))
REASON = 'It lies further from the training images than 99.5 % of them.'
CHECKS = {'dcmftest': [], 'dcm2xml': [], 'dsrdump': [], 'dciodvfy': ['-new']}


def row(finding, probability=.6, **other):
    usual = dict(prevalence=.1, threshold=.2, rule='youden', flagged=probability >= .2, calibrated=True, auroc=.8, low=.7, high=.9, part='test', better_than_chance=True)
    return dict(finding=finding, probability=probability) | usual | other


def answer(**other): return Answer(**dict(image='x.dcm', findings=[row(f, .1 + .2*i) for i, f in enumerate(FINDINGS)], maps=np.ones((3, 64, 64), np.float32), size=(96, 96)) | other)


def dicom(tmp_path, name='x.dcm', **attributes):
    "A DICOM X-ray; attributes are written as they are given, however odd."
    path = write_dicom(FILM, tmp_path/name, {k: v for k, v in (PERSON | attributes).items() if k in PERSON and v == PERSON[k]})
    odd = {k: v for k, v in attributes.items() if PERSON.get(k) != v}
    data = pydicom.dcmread(path)
    for keyword, value in odd.items():
        if value is None:
            if keyword in data: del data[keyword]
        else: data[keyword] = pydicom.DataElement(keyword, pydicom.datadict.dictionary_VR(keyword), value, validation_mode=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pydicom.dcmwrite(path, data, enforce_file_format=True) if 'SOPInstanceUID' in data else data.save_as(path)
    return path


def texts(report): return [item.TextValue for item in report.ContentSequence if item.ValueType == 'TEXT']


def complaints(tool, path):
    "What a tool of dcmtk or dicom3tools has against a file; private codes are no fault."
    if not shutil.which(tool): pytest.skip(f'{tool} is not installed (Debian: {"dicom3tools" if tool == "dciodvfy" else "dcmtk"})')
    done = subprocess.run([tool, *CHECKS[tool], str(path), *(['/dev/null'] if tool == 'dcm2xml' else [])], capture_output=True, text=True)
    said = done.stdout*(tool in ('dcmftest', 'dciodvfy')) + done.stderr
    harmless = ('yes: ', 'ComprehensiveSR', 'SCImage')
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(harmless) and '<99CHESTNB>' not in line and 'needed to build DICOMDIR' not in line]
    return lines + [f'exit status {done.returncode}']*(done.returncode != 0)


# ---- what stands in them

def test_patient_and_study_are_the_images_and_the_series_is_new(tmp_path):
    source = dicom(tmp_path)
    report, capture = map(pydicom.dcmread, write_dicom_results(source, answer(), SPEC, tmp_path/'out'))
    for result in (report, capture):
        assert all(str(result[keyword].value) == str(PERSON.get(keyword, '')) for keyword in COPIED)
        assert (result.StudyInstanceUID, result.StudyDescription) == ('1.2.3.4', 'Thorax')
        assert 'RESEARCH' in result.SeriesDescription and result.SeriesInstanceUID != PERSON['SeriesInstanceUID']
    assert len({report.SeriesInstanceUID, capture.SeriesInstanceUID, report.SOPInstanceUID, capture.SOPInstanceUID}) == 4
    assert capture.BurnedInAnnotation == 'YES' and capture.SourceImageSequence[0].ReferencedSOPInstanceUID == '1.2.3.4.5.6'


def test_report_holds_numbers_codes_algorithm_and_warning(tmp_path):
    [path, _] = write_dicom_results(dicom(tmp_path), answer(), SPEC, tmp_path/'out')
    report = hd.sr.srread(path)
    groups = report.content.get_image_measurement_groups()
    assert [group.finding_type.value for group in groups] == ['ENLARGED_CARDIOMEDIASTINUM', 'HERNIA', '60046008']   # furthest above its threshold first
    measured = {m.name.value: (float(m.value), m.unit.value) for m in groups[0].get_measurements()}
    assert measured == {'PROBABILITY': (.5, '1'), 'PREVALENCE': (.1, '1'), 'THRESHOLD': (.2, '1')}
    assert [e.value.meaning for group in groups for e in group.get_qualitative_evaluations() if e.name.value == 'FLAGGED'] == ['Yes', 'Yes', 'No']
    said = [item.TextValue for item in groups[0][0].ContentSequence if item.ValueType == 'TEXT']
    assert {'example', 'chestnb', model_checksum(SPEC), 'trained on: SYNTHETIC images', 'AUROC 0.80 [0.70, 0.90] on test patients.'} <= set(said)
    assert {REPORT_TEXT, NOT_FOR_CLINICAL_USE} <= set(texts(report))
    assert (report.PreliminaryFlag, report.VerificationFlag) == ('PRELIMINARY', 'UNVERIFIED')


def test_nothing_is_invented_where_the_model_knows_nothing(tmp_path):
    unknown = row('Hernia', .3, threshold=None, flagged=None, prevalence=None, calibrated=False, auroc=None, low=None, high=None, better_than_chance=False)
    [path, _] = write_dicom_results(dicom(tmp_path), answer(findings=[unknown]), SPEC, tmp_path/'out')
    [group] = hd.sr.srread(path).content.get_image_measurement_groups()
    assert [m.name.value for m in group.get_measurements()] == ['SCORE']
    assert [e.name.value for e in group.get_qualitative_evaluations()] == []
    assert finding_cells(unknown, SPEC)[1:] == ['score 0.3', 'no threshold', '–', '–', 'never tested: too few positive patients']


def test_a_refused_image_has_a_report_without_a_number(tmp_path):
    paths = write_dicom_results(dicom(tmp_path), answer(status='refused', reasons=[REASON], findings=[], maps=None), SPEC, tmp_path/'out')
    [group] = hd.sr.srread(paths[0]).content.get_image_measurement_groups()
    assert [e.name.value for e in group.get_qualitative_evaluations()] == ['REFUSED']
    assert REASON in [item.TextValue for item in group[0].ContentSequence if item.ValueType == 'TEXT']
    assert b'NUM' not in paths[0].read_bytes() and len(paths) == 2


def test_a_refused_image_without_readable_pixels_has_a_report_alone(tmp_path):
    paths = write_dicom_results(get_testdata_file('CT_small.dcm'), answer(status='refused', reasons=['It is a CT.'], findings=[], maps=None), SPEC, tmp_path/'out')
    assert [path.name for path in paths] == ['CT_small.report.dcm']


def test_a_failed_image_has_nothing(tmp_path):
    assert write_dicom_results(dicom(tmp_path), answer(status='failed', reasons=['truncated'], findings=[]), SPEC, tmp_path/'out') == []
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('name', ['rtplan.dcm', 'reportsi.dcm', 'DICOMDIR'])
def test_a_file_without_an_image_has_nothing(tmp_path, name):
    path = get_testdata_file(name, download=False)
    if not path: pytest.skip(f'{name} does not come with this pydicom')
    assert write_dicom_results(path, answer(status='refused', reasons=['It holds no image.'], findings=[], maps=None), SPEC, tmp_path/'out') == []


def test_probability_of_a_refused_image_only_when_asked_for(tmp_path):
    [path, _] = write_dicom_results(dicom(tmp_path), answer(status='refused', reasons=[REASON]), SPEC, tmp_path/'out')
    assert len(hd.sr.srread(path).content.get_image_measurement_groups()) == 4


# ---- the same files

def test_a_second_run_gives_the_same_files(tmp_path):
    source, copy = dicom(tmp_path), tmp_path/'elsewhere'/'y.dcm'
    copy.parent.mkdir()
    shutil.copy(source, copy)
    first = write_dicom_results(source, answer(path=str(source)), SPEC, tmp_path/'a')
    second = write_dicom_results(copy, answer(path=str(copy)), SPEC, tmp_path/'b', name='x')
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


@pytest.mark.parametrize('change', [dict(findings=[row('Effusion', .61)]), dict(status='refused', reasons=[REASON]), dict(notes=['No usable lung mask.'])])
def test_another_answer_is_another_object(tmp_path, change):
    source = dicom(tmp_path)
    one, other = (pydicom.dcmread(write_dicom_results(source, a, SPEC, tmp_path/name)[0]) for name, a in (('a', answer()), ('b', answer(**change))))
    assert one.SOPInstanceUID != other.SOPInstanceUID and one.StudyInstanceUID == other.StudyInstanceUID


def test_another_model_is_another_object(tmp_path):
    source, exported = dicom(tmp_path), SPEC | {'files': {'model.onnx': {'bytes': 1, 'sha256': 'ab'*32}}}
    one, other = (pydicom.dcmread(write_dicom_results(source, answer(), spec, tmp_path/name)[0]) for name, spec in (('a', SPEC), ('b', exported)))
    assert one.SOPInstanceUID != other.SOPInstanceUID and model_checksum(exported) == 'SHA-256 of model.onnx: ' + 'ab'*32


# ---- poor inputs

ODD = {'no_study': dict(StudyInstanceUID=None), 'empty_study': dict(StudyInstanceUID=''), 'no_numbers': dict(StudyInstanceUID=None, SeriesInstanceUID=None),
       'text_for_uid': dict(StudyInstanceUID='study one'), 'zeros_in_uid': dict(StudyInstanceUID='1.2.003.4'), 'empty_patient': dict(PatientID='', PatientName=''),
       'no_patient': dict(PatientID=None, PatientName=None, PatientBirthDate=None, PatientSex=None), 'anonymised': dict(PatientID='ANON', PatientName='ANON', PatientBirthDate=''),
       'dots_in_date': dict(StudyDate='2026.01.31'), 'no_date': dict(StudyDate='soon'), 'colons_in_time': dict(StudyTime='10:15:00'), 'sex': dict(PatientSex='female'),
       'strange_sex': dict(PatientSex='W'), 'long_patient': dict(PatientID='7'*90), 'two_patients': dict(PatientID=['A', 'B']), 'long_accession': dict(AccessionNumber='A'*20),
       'name_without_caret': dict(PatientName='Synthetic'), 'letters': dict(PatientName='Müller^Zoë', SpecificCharacterSet='ISO_IR 192'), 'greek': dict(PatientName='Σύνθεση^Α', SpecificCharacterSet='ISO_IR 192'),
       'latin1': dict(PatientName='Müller^Zoë', SpecificCharacterSet='ISO_IR 100'), 'orientation': dict(PatientOrientation='L'), 'private_kind': dict(SOPClassUID='1.2.3.99'), 'identity_removed': dict(PatientIdentityRemoved='YES')}


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "Report and capture of every odd file, made once."
    folder, made = tmp_path_factory.mktemp('odd'), {}
    def of(case):
        if case not in made: made[case] = write_dicom_results(dicom(folder, f'{case}.dcm', **ODD[case]), answer(), SPEC, folder/'out')
        return made[case]
    return of


@pytest.mark.parametrize('case', ODD)
def test_an_odd_header_gives_whole_results(results, case):
    for path in results(case):
        result = pydicom.dcmread(path)
        assert all(keyword in result for keyword in COPIED)
        for element in result.iterall():
            if element.VR in ('DA', 'TM', 'CS', 'LO', 'SH') and element.value not in (None, ''):
                for value in element.value if element.VM > 1 else [element.value]: pydicom.valuerep.validate_value(element.VR, str(value), 2)


@pytest.mark.parametrize('case,keyword,value', [('dots_in_date', 'StudyDate', '20260131'), ('colons_in_time', 'StudyTime', '101500'), ('sex', 'PatientSex', 'F'), ('strange_sex', 'PatientSex', ''),
    ('long_patient', 'PatientID', ''), ('two_patients', 'PatientID', ''), ('long_accession', 'AccessionNumber', ''), ('zeros_in_uid', 'StudyInstanceUID', '1.2.003.4'),
    ('anonymised', 'PatientID', 'ANON'), ('letters', 'PatientName', 'Müller^Zoë'), ('latin1', 'PatientName', 'Müller^Zoë'), ('greek', 'PatientName', 'Σύνθεση^Α'), ('name_without_caret', 'PatientName', 'Synthetic')])
def test_an_odd_value_is_kept_mended_or_left_empty(results, case, keyword, value):
    assert all(str(pydicom.dcmread(path).get(keyword)) == value for path in results(case))


@pytest.mark.parametrize('case,says', [('no_study', 'StudyInstanceUID'), ('text_for_uid', 'StudyInstanceUID'), ('strange_sex', 'Patient Sex'), ('long_patient', 'Patient ID'),
                                       ('long_accession', 'Accession Number'), ('no_date', 'Study Date'), ('private_kind', '1.2.3.99')])
def test_what_was_left_out_is_said_in_the_report(results, case, says):
    assert any(text.startswith('About the file: ') and says in text for text in texts(pydicom.dcmread(results(case)[0])))


def test_a_file_in_order_is_not_remarked_on(tmp_path):
    assert not any(text.startswith('About') for text in texts(pydicom.dcmread(write_dicom_results(dicom(tmp_path), answer(), SPEC, tmp_path/'out')[0])))


def test_a_made_study_number_is_the_same_every_time_and_of_this_file_alone(tmp_path):
    one, other = dicom(tmp_path, 'one.dcm', StudyInstanceUID=None), dicom(tmp_path, 'other.dcm', StudyInstanceUID=None, PatientID='S-18')
    assert reference_of(one)[0].StudyInstanceUID == reference_of(one)[0].StudyInstanceUID != reference_of(other)[0].StudyInstanceUID


def test_date_is_the_images_or_the_models():
    data = Dataset()
    assert moment_of(data, SPEC).strftime('%Y%m%d %H%M') == '20261127 0600'
    data.StudyDate, data.StudyTime = '20260131', '10'
    assert moment_of(data, SPEC).strftime('%Y%m%d %H%M') == '20260131 1000'
    data.AcquisitionDate = '20260201'
    assert moment_of(data, SPEC).strftime('%Y%m%d %H%M') == '20260201 0000'


@pytest.mark.parametrize('name', ['CT_small.dcm', 'MR_small.dcm', 'RG1_UNCI.dcm', 'no_meta.dcm', 'JPEG2000.dcm', 'ExplVR_BigEnd.dcm', 'nested_priv_SQ.dcm', 'rtplan.dcm', 'reportsi.dcm'])
def test_pydicoms_own_files_give_a_report_or_a_sentence(tmp_path, name):
    path = get_testdata_file(name, download=False)
    if not path: pytest.skip(f'{name} does not come with this pydicom')
    try: paths = write_dicom_results(path, answer(status='refused', reasons=['No chest radiograph.'], findings=[], maps=None), SPEC, tmp_path)
    except UserError as error: assert name in str(error)
    else: assert all(hd.sr.srread(path).content.get_image_measurement_groups() for path in paths)


# ---- what other readers say

@pytest.mark.parametrize('tool', CHECKS)
@pytest.mark.parametrize('case', ['usual', 'refused', 'no_numbers', 'no_patient', 'letters', 'two_patients', 'long_patient', 'private_kind', 'orientation', 'identity_removed'])
def test_validators_have_nothing_against_them(results, tmp_path, tool, case):
    if case == 'usual': paths = write_dicom_results(dicom(tmp_path), answer(), SPEC, tmp_path/'out')
    elif case == 'refused': paths = write_dicom_results(dicom(tmp_path), answer(status='refused', reasons=[REASON], findings=[], maps=None), SPEC, tmp_path/'out')
    else: paths = results(case)
    for path in paths:
        if tool == 'dsrdump' and 'capture' in path.name: continue
        assert complaints(tool, path) == ([] if (tool, case) != ('dsrdump', 'letters') else ['W: The VR checker does not support this Specific Character Set: ISO_IR 192'])


# ---- codes

def test_codes_of_dicom_stand_in_pydicoms_lists():
    from pydicom.sr._concepts_dict import concepts
    meanings = {(code, scheme): meaning for scheme, names in concepts.items() for by_code in names.values() for code, (meaning, _) in by_code.items()}
    named = {code[:2]: code[2] for code in FINDING_CODES.values() if code[:2] in meanings}
    assert len(named) == 7 and all(meanings[code].casefold() == meaning.casefold() for code, meaning in named.items())


@pytest.mark.parametrize('finding', ['X'*90, 'Opacité', '胸水', 'a/b', 'Pleural_Thickening'])
def test_any_name_of_a_finding_can_be_coded(finding):
    code = finding_code(finding)
    assert code.scheme_designator == '99CHESTNB' and len(code.meaning) <= 64 and code.value


# ---- mistakes

def test_a_picture_is_no_dicom_file(tmp_path):
    Image.fromarray(FILM.astype(np.uint8)).save(tmp_path/'x.png')
    with pytest.raises(UserError, match='no DICOM file'): write_dicom_results(tmp_path/'x.png', answer(), SPEC, tmp_path/'out')


def test_without_highdicom_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__
    def without(name, *rest, **more):
        if name.split('.')[0] == 'highdicom': raise ImportError(name)
        return real(name, *rest, **more)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(UserError, match=r'pip install "chestnb\[export\]"'): write_dicom_results(tmp_path/'x.dcm', answer(), SPEC, tmp_path)


def test_both_or_none(tmp_path, monkeypatch):
    import chestnb.using.dicom_report as module
    source = dicom(tmp_path)
    def fails(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module, 'secondary_capture', fails)
    with pytest.raises(OSError): write_dicom_results(source, answer(), SPEC, tmp_path/'out')
    assert not list((tmp_path/'out').glob('*')) if (tmp_path/'out').exists() else True


# ---- the picture

def test_threshold_and_probability_stand_on_one_scale(tmp_path):
    "With another prevalence the probability moves and the flag stays, so the threshold moves with it."
    rare = row('Effusion', .04, prevalence=.01, threshold=.2, flagged=True)
    [path, _] = write_dicom_results(dicom(tmp_path), answer(findings=[rare]), SPEC, tmp_path/'out')
    [group] = hd.sr.srread(path).content.get_image_measurement_groups()
    measured = {m.name.value: float(m.value) for m in group.get_measurements()}
    assert measured['PREVALENCE'] == .01 and measured['THRESHOLD'] < measured['PROBABILITY'] == .04


@pytest.mark.parametrize('size', [(96, 96), (40, 200), (200, 40), (1, 1)])
def test_picture_of_any_shape(size):
    image = Image.fromarray(FILM.astype(np.uint8)).resize(size)
    picture = np.asarray(findings_picture(answer(), image, SPEC))
    assert picture.ndim == 3 and picture.shape[1] == 1260
    assert (picture[5, 5] == (127, 0, 0)).all() and (picture[-5, 5] == (127, 0, 0)).all()   # the banner, above and below


def test_many_findings_and_long_names_fit():
    names = [f'A finding with a very long name, number {i}' for i in range(40)]
    spec = SPEC | {'findings': names, 'prevalence': dict.fromkeys(names, .1)}
    picture = findings_picture(Answer('x', findings=[row(n) for n in names], maps=np.zeros((40, 8, 8))), Image.fromarray(FILM.astype(np.uint8)), spec)
    assert picture.height < 2000


def test_the_picture_names_nobody():
    "File names often hold patient names; neither they nor the header get into pixels."
    one, other = (findings_picture(answer(image=name, path=f'/{name}'), Image.fromarray(FILM.astype(np.uint8)), SPEC) for name in ('meier_anna.dcm', 'x.dcm'))
    assert np.array_equal(one, other)
