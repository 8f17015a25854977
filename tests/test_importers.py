"""Importers: a tiny tree in each source's own shape (headers as published), and the data set that comes of it."""
import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chestnb.commands.importing import chestnb_import
from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.data.dicom import write_dicom
from chestnb.data.import_sources import candidates, padchest_labels, table_headers
from chestnb.data.import_tables import ImportRules
from chestnb.data.import_files import FileIndex, flat_names
from chestnb.data.importers import import_source, import_torchxrayvision
from chestnb.data.provenance import Provenance, read_provenance

CHEXPERT = ('Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,'
            'Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices')
MIMIC_LABELS = ('subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,'
                'Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices')
MIMIC_METADATA = ('dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning,'
                  'ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning')
PADCHEST = (',ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,MethodProjection,Pediatric,Modality_DICOM,'
            'Manufacturer_DICOM,PhotometricInterpretation_DICOM,PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,'
            'WindowCenter_DICOM,WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,'
            'RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS')
VINDR_LABELS = ('image_id,rad_ID,Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,Enlarged PA,ILD,Infiltration,'
                'Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,'
                'Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,No finding')
NIH = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]')
KAGGLE_SAMPLE = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImageWidth,OriginalImageHeight,'
                 'OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y')


def picture(path, grey=100, size=(12, 10)):
    "An image of one grey, by which it is known again."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', size, grey).save(path)


def write(path, header, *rows):
    "A table as text, compressed if its name says so."
    path.parent.mkdir(parents=True, exist_ok=True)
    text = '\n'.join([header, *rows]) + '\n'
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path


def message(call, *arguments, **options):
    with pytest.raises(UserError) as caught: call(*arguments, **options)
    return str(caught.value)


def brought(source, to, copy=False, **rules):
    "The data set, its summary, and what was left out."
    dataset, told = import_source(source, to, ImportRules(**rules), copy, progress=False)
    assert ChestDataset(to).table.equals(dataset.table)
    return dataset, told, pd.read_csv(to/'left_out.csv', dtype=str).set_index('image').reason.to_dict()


def labels(dataset, name):
    "Labels of one finding, -9 where unknown."
    return dataset.table.set_index('image')[name].astype(float).fillna(-9).to_dict()


def grey_of(dataset, name): return dataset.open_image(name).getpixel((0, 0))


def tree(folder):
    "Every file of a folder with its content."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob('*')) if path.is_file()}


# ---- CheXpert

def chexpert(root, name='train'):
    marks = [',,1.0,-1.0,,0.0,,,,,,,,', '1.0,,,,,,,,,,,,,1.0', ',,,,,,,,,,,,,', ',0.0,0.0,1.0,,,,,,,1.0,,,-1.0', '1.0,,,,,,,,,0.0,,,,']
    rows = [('patient00001/study1/view1_frontal', 'Female,68,Frontal,AP'), ('patient00002/study1/view1_frontal', 'Male,45,Frontal,PA'),
            ('patient00002/study2/view1_frontal', 'Male,45,Frontal,PA'), ('patient00003/study1/view1_frontal', 'Unknown,0,Frontal,'),
            ('patient00003/study1/view2_lateral', 'Unknown,0,Lateral,')]
    write(root/f'{name}.csv', CHEXPERT, *(f'CheXpert-v1.0-small/{name}/{path}.jpg,{facts},{mark}' for (path, facts), mark in zip(rows, marks)))
    for i, (path, _) in enumerate(rows): picture(root/f'CheXpert-v1.0-small/{name}/{path}.jpg', 20*i + 10)
    return root


def test_chexpert(tmp_path):
    dataset, told, left_out = brought(chexpert(tmp_path/'source'), tmp_path/'data')
    one, two, three = 'patient00001_study1_view1_frontal.jpg', 'patient00002_study1_view1_frontal.jpg', 'patient00003_study1_view1_frontal.jpg'
    assert dataset.table.image.tolist() == [one, two, three] and dataset.table.patient_id.tolist() == [1, 2, 3]
    assert dataset.findings == tuple(CHEXPERT.split(',')[6:])                       # the source's own, not NIH's
    assert labels(dataset, 'Cardiomegaly') == {one: 1, two: 0, three: 0}
    assert labels(dataset, 'Lung Opacity') == {one: -9, two: 0, three: 1}           # -1 is unknown; 'No Finding' speaks for the pathologies
    assert labels(dataset, 'Support Devices') == {one: -9, two: 1, three: -9}       # ... and not for devices
    assert labels(dataset, 'Pleural Effusion') == {one: -9, two: 0, three: 1}
    assert labels(dataset, 'No Finding') == {one: 0, two: 1, three: 0}
    assert dataset.table.sex.fillna('?').tolist() == ['F', 'M', '?'] and dataset.table.age.fillna(-9).tolist() == [68, 45, -9]
    assert dataset.table.view_position.fillna('?').tolist() == ['AP', 'PA', '?']
    assert [grey_of(dataset, name) for name in (one, two, three)] == [10, 30, 70]
    train = 'train/'
    assert left_out == {f'{train}patient00003/study1/view2_lateral.jpg': 'another view: L', f'{train}patient00002/study2/view1_frontal.jpg': 'unlabelled'}
    assert '2 uncertain labels (-1): mask' in told and 'another view: 1' in told and 'unlabelled: 1' in told
    assert read_provenance(tmp_path/'data').name == 'CheXpert' and not dataset.is_synthetic


def test_chexpert_of_several_tables_is_refused_with_the_candidates_and_one_can_be_named(tmp_path):
    chexpert(chexpert(tmp_path/'source'), 'valid')
    said = message(import_source, tmp_path/'source', tmp_path/'data')
    assert 'several tables could be meant: train.csv (chexpert), valid.csv (chexpert)' in said and not (tmp_path/'data').exists()
    dataset, _, _ = brought(tmp_path/'source/valid.csv', tmp_path/'data')
    assert 'valid' in os.path.realpath(dataset.image_path(dataset.table.image[0]))   # not the image of the same name in train/


def test_the_word_train_in_the_path_of_a_validation_table_is_harmless(tmp_path):
    "torchxrayvision's CheX_Dataset looks for it in the whole path, and fails."
    dataset, _, _ = brought(chexpert(tmp_path/'training data', 'valid'), tmp_path/'data')
    assert dataset.table.patient_id.tolist() == [1, 2, 3]


@pytest.mark.parametrize('rules,opacity,devices', [(dict(unknown='negative'), 0, 0), (dict(unknown='positive', blank='negative'), 1, 0), (dict(blank='negative'), -9, 0)])
def test_policies_for_uncertain_and_empty_labels(tmp_path, rules, opacity, devices):
    dataset, _, _ = brought(chexpert(tmp_path/'source'), tmp_path/'data', **rules)
    one = 'patient00001_study1_view1_frontal.jpg'
    assert labels(dataset, 'Lung Opacity')[one] == opacity and labels(dataset, 'Support Devices')[one] == devices
    stated = read_provenance(tmp_path/'data').label_release                          # labels that a policy made are called so for good
    assert stated == f"train.csv, uncertain labels: {rules.get('unknown', 'mask')}, empty labels: {rules.get('blank') or rules['unknown']}"


def test_empty_labels_do_not_become_positive_by_a_word_about_uncertain_ones(tmp_path):
    said = message(import_source, chexpert(tmp_path/'source'), tmp_path/'data', ImportRules(unknown='positive'))
    assert 'are empty, not uncertain' in said and '--blank negative' in said
    assert '--unknown sure: expected one of mask, negative, positive' in message(import_source, tmp_path/'source', tmp_path/'data', ImportRules(unknown='sure'))


# ---- MIMIC-CXR-JPG

def mimic(root):
    studies = [(10000032, 50414267), (10000032, 53189527), (10000764, 57375967), (10000898, 50771383)]
    images = [('02aa804e', 0, 'PA'), ('174413ec', 0, 'LATERAL'), ('2a2277a9', 1, 'AP'), ('e084de3b', 2, ''), ('68b5c4b1', 2, 'PA'), ('unlabelled', 3, 'PA')]
    marks = [',1.0,,0.0,,,,-1.0,,,,,,', ',,,,,,,,1.0,,,,,1.0', ',,1.0,,,,,,,,,-1.0,,']
    write(root/'mimic-cxr-2.0.0-chexpert.csv.gz', MIMIC_LABELS, *(f'{p},{s},{mark}' for (p, s), mark in zip(studies, marks)), '19999999,59999999,1.0,,,,,,,,,,,,,')
    write(root/'mimic-cxr-2.0.0-metadata.csv.gz', MIMIC_METADATA, *(f'{name},{studies[i][0]},{studies[i][1]},CHEST (PA AND LAT),{view},3056,2544,2180050{i + 1},213014.53,'
                                                                   'CHEST (PA AND LAT),,Erect' for name, i, view in images))
    write(root/'mimic-cxr-2.0.0-split.csv.gz', 'dicom_id,study_id,subject_id,split', *(f'{name},{studies[i][1]},{studies[i][0]},train' for name, i, _ in images))
    for k, (name, i, _) in enumerate(images): picture(root/f'files/p{str(studies[i][0])[:2]}/p{studies[i][0]}/s{studies[i][1]}/{name}.jpg', 10*k + 10)
    return root


def test_mimic(tmp_path):
    dataset, _, left_out = brought(mimic(tmp_path/'source'), tmp_path/'data')
    assert dataset.table.image.tolist() == ['02aa804e.jpg', '2a2277a9.jpg', '68b5c4b1.jpg']
    assert dataset.table.patient_id.tolist() == [10000032, 10000032, 10000764] and dataset.table.follow_up.tolist() == [0, 1, 0]
    assert labels(dataset, 'Cardiomegaly') == {'02aa804e.jpg': 1, '2a2277a9.jpg': 0, '68b5c4b1.jpg': -9}
    assert labels(dataset, 'Support Devices') == {'02aa804e.jpg': -9, '2a2277a9.jpg': 1, '68b5c4b1.jpg': -9}  # torchxrayvision writes 0 on normal images
    assert labels(dataset, 'No Finding') == {'02aa804e.jpg': 0, '2a2277a9.jpg': 1, '68b5c4b1.jpg': 0}
    assert dataset.table.view_position.tolist() == ['PA', 'AP', 'PA'] and grey_of(dataset, '2a2277a9.jpg') == 30
    assert left_out == {'174413ec.jpg': 'another view: LATERAL', 'e084de3b.jpg': 'its view is not said, and may be lateral', 'unlabelled': 'unlabelled',
                        'study 59999999': 'has labels, but no image in the metadata'}


def test_mimic_without_its_metadata_and_with_two_labellers(tmp_path):
    root = mimic(tmp_path/'source')
    (root/'mimic-cxr-2.0.0-negbio.csv.gz').write_bytes((root/'mimic-cxr-2.0.0-chexpert.csv.gz').read_bytes())
    assert 'mimic-cxr-2.0.0-negbio.csv.gz (mimic)' in message(import_source, root, tmp_path/'data')
    (root/'mimic-cxr-2.0.0-metadata.csv.gz').unlink()
    assert 'expected mimic-cxr-2.0.0-metadata.csv.gz' in message(import_source, root/'mimic-cxr-2.0.0-negbio.csv.gz', tmp_path/'data')


# ---- PadChest

def padchest(root):
    def row(i, name, patient, projection, found, birth='1950.0', sex='F'):
        cells = {'': i, 'ImageID': name, 'ImageDir': i % 2, 'StudyDate_DICOM': f'2014091{i}', 'StudyID': i, 'PatientID': patient, 'PatientBirth': birth, 'PatientSex_DICOM': sex,
                 'Projection': projection, 'Labels': f'"{found}"', 'Report': '"uno, dos ."', 'Modality_DICOM': 'CR'}
        picture(root/f'images/{i % 2}/{name}', 10*i + 10)
        return ','.join(str(cells.get(column, '')) for column in PADCHEST.split(','))
    write(root/'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv', PADCHEST,
          row(0, '1_a.png', '839860488694292331637988235681460987', 'PA', "['pseudonodule', 'pleural effusion', '']"), row(1, '1_b.png', '839860488694292331637988235681460987', 'L', "['normal']"),
          row(2, '2_a.png', '313572750430997347502932654319389875966', 'AP_horizontal', "['normal']", 'None', 'M'), row(3, '3_a.png', '77', 'PA', "['unchanged', ' subcutaneous emphysema']"),
          row(4, '4_a.png', '78', 'PA', "['exclude']"), row(5, '5_a.png', '79', 'PA', "['unchanged']"), row(6, '6_a.png', '80', '', "['normal']"), row(7, '7_a.png', '81', 'PA', '[]'))
    return root


def test_padchest(tmp_path):
    dataset, _, left_out = brought(padchest(tmp_path/'source'), tmp_path/'data')
    assert dataset.table.image.tolist() == ['1_a.png', '2_a.png', '3_a.png']
    assert dataset.findings == ('pleural effusion', 'pseudonodule', 'subcutaneous emphysema')      # no Nodule, no Emphysema made of parts of words
    assert labels(dataset, 'pseudonodule') == {'1_a.png': 1, '2_a.png': 0, '3_a.png': -9}          # 'unchanged' leaves the rest open
    assert labels(dataset, 'subcutaneous emphysema') == {'1_a.png': 0, '2_a.png': 0, '3_a.png': 1}
    assert labels(dataset, 'No Finding') == {'1_a.png': 0, '2_a.png': 1, '3_a.png': 0}
    assert dataset.table.patient_id.tolist() == ['839860488694292331637988235681460987', '313572750430997347502932654319389875966', '77']
    assert dataset.table.age.fillna(-9).tolist() == [64, -9, 64] and dataset.table.sex.tolist() == ['F', 'M', 'F'] and dataset.table.view_position.tolist() == ['PA', 'AP', 'PA']
    assert grey_of(dataset, '3_a.png') == 40
    assert left_out == {'4_a.png': "its report was excluded by PadChest ('exclude')", '1/1_b.png': 'another view: L', '1/5_a.png': 'unlabelled',
                        '0/6_a.png': 'its view is not said, and may be lateral', '1/7_a.png': 'unlabelled'}


def test_findings_can_be_chosen(tmp_path):
    dataset, _, _ = brought(padchest(tmp_path/'source'), tmp_path/'data', findings='Pleural_Effusion')
    assert dataset.findings == ('pleural effusion',) and dataset.targets().shape == (3, 1)
    assert "'hernia' is no finding of this source" in message(import_source, tmp_path/'source', tmp_path/'other', ImportRules(findings='hernia'))


@pytest.mark.parametrize('text,found', [("['a', ' B ', '']", {'a', 'b'}), ('[]', set()), ('', set()), ('nan', set()), ('[nan', set())])
def test_padchest_labels(text, found): assert padchest_labels(text) == found


# ---- VinDr-CXR

def vindr(root, labels=True, kaggle=False):
    seen = {'aa11': [('R1', 'Cardiomegaly', (1, 2, 7, 6)), ('R2', 'Cardiomegaly', (1, 1, 8, 6)), ('R3', 'Nodule/Mass', (0, 0, 3, 3))],
            'bb22': [('R1', 'No finding', None), ('R2', 'No finding', None), ('R3', 'Cardiomegaly', (2, 2, 4, 4))],
            'cc33': [(reader, 'No finding', None) for reader in ('R1', 'R2', 'R3')]}
    box = lambda corners: ','.join(map(str, corners)) if corners else ',,,'
    if kaggle: write(root/'train.csv', 'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max', *(f'{i},{c},0,{r},{box(b)}' for i, rows in seen.items() for r, c, b in rows))
    else: write(root/'annotations_train.csv', 'image_id,rad_id,class_name,x_min,y_min,x_max,y_max', *(f'{i},{r},{c},{box(b)}' for i, rows in seen.items() for r, c, b in rows))
    if labels: write(root/'image_labels_train.csv', VINDR_LABELS, *(f'{i},{r},' + ','.join(str(int(c == name)) for name in VINDR_LABELS.split(',')[2:]) for i, rows in seen.items() for r, c, _ in rows))
    for k, name in enumerate(seen): write_dicom(np.full((10, 12), 10*k, np.uint16), root/f'train/{name}.dicom', {
        'WindowCenter': 128, 'WindowWidth': 256, 'PatientID': '', 'PatientSex': 'F', 'PatientAge': '060Y', 'BodyPartExamined': '', 'ViewPosition': ''}, bits=8 if False else 12)
    return root


@pytest.mark.parametrize('labelled,kaggle', [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize('rule,cardiomegaly,nodule', [('any', [1, 1, 0], [1, 0, 0]), ('majority', [1, 0, 0], [0, 0, 0]), ('all', [0, 0, 0], [0, 0, 0])])
def test_vindr_joins_its_readers_by_the_named_rule(tmp_path, labelled, kaggle, rule, cardiomegaly, nodule):
    dataset, told, left_out = brought(vindr(tmp_path/'source', labelled, kaggle), tmp_path/'data', readers=rule)
    names = ['aa11.dicom', 'bb22.dicom', 'cc33.dicom']
    assert list(labels(dataset, 'Cardiomegaly').values()) == cardiomegaly and list(labels(dataset, 'Nodule/Mass').values()) == nodule
    assert list(labels(dataset, 'No Finding').values()) == [float(not (a or b)) for a, b in zip(cardiomegaly, nodule)]
    assert dataset.table.image.tolist() == names and dataset.table.patient_id.isna().all() and 'patients are unknown' in told and not left_out
    assert dataset.table.sex.tolist() == ['F']*3 and dataset.table.age.tolist() == [60]*3 and dataset.table.width.tolist() == [12]*3
    assert rule in dataset.provenance.label_release and ('Lung cyst' in dataset.findings) == labelled    # labels without a box are kept
    boxes = pd.DataFrame(columns=['finding', 'x', 'y', 'width', 'height', 'image']) if dataset.boxes is None else dataset.boxes[dataset.boxes.image == 'aa11.dicom']
    assert boxes[boxes.finding == 'Cardiomegaly'][['x', 'y', 'width', 'height']].values.tolist() == {'any': [[1, 2, 6, 4], [1, 1, 7, 5]], 'majority': [[1, 2, 6, 4]], 'all': []}[rule]
    assert (dataset.boxes is not None and 'bb22.dicom' in set(dataset.boxes.image)) == (rule == 'any')             # no box of a finding that the rule does not find
    assert f'kept ({rule})' in told


def test_vindr_without_a_rule_is_refused(tmp_path):
    assert '--readers majority' in message(import_source, vindr(tmp_path/'source'), tmp_path/'data')
    assert '--readers best is no rule' in message(import_source, tmp_path/'source', tmp_path/'data', ImportRules(readers='best'))


def test_vindr_test_set_has_one_reading(tmp_path):
    header = VINDR_LABELS.replace('rad_ID,', '')
    write(tmp_path/'source/image_labels_test.csv', header, 'aa11,' + ','.join('1' if name == 'ILD' else '0' for name in header.split(',')[1:]))
    picture(tmp_path/'source/test/aa11.png')
    dataset, _, _ = brought(tmp_path/'source', tmp_path/'data')
    assert labels(dataset, 'ILD') == {'aa11.png': 1} and labels(dataset, 'COPD') == {'aa11.png': 0} and dataset.boxes is None


def test_boxes_of_larger_images_are_not_written(tmp_path):
    root = vindr(tmp_path/'source', kaggle=True, labels=False)
    for name in ('aa11', 'bb22', 'cc33'):
        (root/f'train/{name}.dicom').unlink()
        picture(root/f'train/{name}.png', size=(5, 5))                              # Kaggle's small copies, with the boxes of the large ones
    dataset, told, _ = brought(root, tmp_path/'data', readers='any')
    assert dataset.boxes is None and 'no boxes.csv was written' in told and len(dataset) == 3


# ---- RSNA

def rsna(root, mapping=True):
    ids = ['00111111-14fd-4e49-80ba-63a80b6bddd6', '00436515-870c-4b36-a041-de91049b9ab4', '00522222-78a8-4b38-8475-49f4573b2dbb', '00633333-5204-4f31-98e0-f35e4b00004a']
    write(root/'stage_2_train_labels.csv', 'patientId,x,y,width,height,Target', f'{ids[0]},,,,,0', f'{ids[1]},264.0,152.0,213.0,379.0,1', f'{ids[1]},562.0,152.0,256.0,453.0,1', f'{ids[2]},,,,,0',
          f'{ids[3]},,,,,0')
    write(root/'stage_2_detailed_class_info.csv', 'patientId,class', f'{ids[0]},No Lung Opacity / Not Normal', f'{ids[1]},Lung Opacity', f'{ids[1]},Lung Opacity', f'{ids[2]},Normal', f'{ids[3]},Normal')
    if mapping: (root/'pneumonia-challenge-dataset-mappings_2018.json').write_text(json.dumps(
        [dict(subset_img_id=name, img_id=image, orig_labels=['Nodule']) for name, image in zip(ids, ('00013659_019.png', '00013659_020.png', '00000003_000.png', '00000004_000.png'))]))
    for k, name in enumerate(ids): write_dicom(np.full((64, 64), 16*k, np.uint8), root/f'stage_2_train_images/{name}.dcm', {
        'PatientID': name, 'PatientAge': '51', 'PatientSex': 'F', 'ViewPosition': 'AP' if k < 3 else 'LL', 'WindowCenter': 128, 'WindowWidth': 256}, bits=8)
    return root, [f'{name}.dcm' for name in ids]


def test_rsna(tmp_path):
    root, names = rsna(tmp_path/'source')
    dataset, _, left_out = brought(root, tmp_path/'data')
    assert dataset.table.image.tolist() == names[:3] and dataset.findings == ('Lung Opacity',)
    assert list(labels(dataset, 'Lung Opacity').values()) == [0, 1, 0] and list(labels(dataset, 'No Finding').values()) == [0, 0, 1]
    assert dataset.table.patient_id.tolist() == [13659, 13659, 3]                    # two images of one patient of NIH, whatever patientId says
    assert dataset.table.view_position.tolist() == ['AP']*3 and dataset.table.sex.tolist() == ['F']*3 and grey_of(dataset, names[2]) == 32
    assert np.allclose(dataset.boxes[['x', 'y', 'width', 'height']], np.array([[264, 152, 213, 379], [562, 152, 256, 453]])*64/1024)
    assert list(left_out.values()) == ["cannot be used: its view position is 'LL'; only frontal views, PA and AP, can be used"]


def test_rsna_without_its_list_has_no_patients(tmp_path):
    root, _ = rsna(tmp_path/'source', mapping=False)
    dataset, told, _ = brought(root, tmp_path/'data')
    assert dataset.table.patient_id.isna().all() and 'patientId names an image' in told


# ---- NIH

def test_kaggles_sample(tmp_path):
    rows = ['00000013_005.png,Emphysema|Infiltration|Pleural_Thickening|Pneumothorax,005,00000013,060Y,M,AP,3056,2544,0.139,0.139', '00000013_026.png,No Finding,026,00000013,057Y,M,AP,2500,2048,0.168,0.168',
            '00000017_001.png,No Finding,001,00000017,077Y,M,AP,2500,2048,0.168,0.168']
    write(tmp_path/'source/sample_labels.csv', KAGGLE_SAMPLE, *rows)
    for k, row in enumerate(rows[:2]): picture(tmp_path/'source/sample/images'/row[:16], 50*k + 50)
    dataset, _, left_out = brought(tmp_path/'source', tmp_path/'data')
    assert dataset.table.patient_id.tolist() == [13, 13] and dataset.table.age.tolist() == [60, 57] and dataset.table.follow_up.tolist() == [0, 1]
    assert labels(dataset, 'Emphysema') == {'00000013_005.png': 1, '00000013_026.png': 0} and left_out == {'00000017_001.png': 'not on disk'}
    assert dataset.provenance.name == 'NIH ChestX-ray14' and grey_of(dataset, '00000013_026.png') == 100


def test_kaggles_224_copy_with_boxes(tmp_path):
    write(tmp_path/'source/Data_Entry_2017.csv', NIH, '00013118_008.png,Atelectasis,8,13118,69,M,PA,2500,2048,0.14,0.14', '00013118_002.png,No Finding,2,13118,69,M,PA,2500,2048,0.14,0.14')
    write(tmp_path/'source/BBox_List_2017.csv', 'Image Index,Finding Label,Bbox [x,y,w,h],,,', '00013118_008.png,Atelectasis,225.0,547.0,86.0,79.0')
    for name in ('00013118_008', '00013118_002'): picture(tmp_path/f'source/images-224/images-224/{name}.png', size=(224, 224))
    dataset, _, _ = brought(tmp_path/'source', tmp_path/'data')
    assert np.allclose(dataset.boxes[['x', 'y', 'width', 'height']], np.array([[225, 547, 86, 79]])*224/1024) and dataset.provenance.label_release == '2017'


def test_a_table_in_nihs_format_is_not_nihs_because_of_it(tmp_path):
    write(tmp_path/'source/data.csv', NIH, 'ours_1.png,Mass,0,1,58,M,PA,12,10,0.1,0.1', 'ours_2.png,No Finding,0,2,58,M,PA,12,10,0.1,0.1')
    for name in ('ours_1.png', 'ours_2.png'): picture(tmp_path/'source/images'/name)
    assert brought(tmp_path/'source', tmp_path/'data')[0].provenance.name == 'unknown'
    (tmp_path/'source/dataset.json').write_text(json.dumps(dict(name='phantoms', synthetic=True)))
    assert brought(tmp_path/'source', tmp_path/'other')[0].is_synthetic


# ---- a table of one's own

def own(root):
    write(root/'our table.csv', 'Datei;Wer;Gender;Fracture;Mass;No_Finding', 'a/1.png;P-7;f;1;;0', 'b/1.png;P-8;m;nein;-1;0'.replace('nein', 'no'), 'c/2.png;P-8;;0;0;1')
    for k, name in enumerate(('a/1.png', 'b/1.png', 'c/2.png')): picture(root/name, 10*k + 10)
    return root


def test_a_table_of_ones_own(tmp_path):
    dataset, told, _ = brought(own(tmp_path/'source'), tmp_path/'data', image='Datei', patient='Wer', labels='Fracture,Mass,No_Finding', name='our hospital')
    assert dataset.table.image.tolist() == ['a_1.png', 'b_1.png', 'c_2.png'] and dataset.table.patient_id.tolist() == ['P-7', 'P-8', 'P-8']
    assert labels(dataset, 'Fracture') == {'a_1.png': 1, 'b_1.png': 0, 'c_2.png': 0} and labels(dataset, 'Mass') == {'a_1.png': -9, 'b_1.png': -9, 'c_2.png': 0}
    assert list(labels(dataset, 'No Finding').values()) == [0, 0, 1] and dataset.table.sex.fillna('?').tolist() == ['F', 'M', '?']
    assert [grey_of(dataset, name) for name in dataset.table.image] == [10, 20, 30] and dataset.provenance.name == 'our hospital'
    assert '1 uncertain label (-1): mask; 1 empty label: mask; of 6' in told


def test_labels_as_texts(tmp_path):
    root = tmp_path/'source'
    write(root/'t.csv', 'image,pid,diagnosis', '1.png,1,Rib fracture|Mass', '2.png,1,normal', '3.png,2,', '4.png,3,Mass')
    for k in '1234': picture(root/f'{k}.png')
    dataset, _, left_out = brought(root, tmp_path/'data', image='image', patient='pid', labels='diagnosis')
    assert dataset.findings == ('Mass', 'Rib fracture') and labels(dataset, 'Mass') == {'1.png': 1, '2.png': 0, '4.png': 1}
    assert list(labels(dataset, 'No Finding').values()) == [0, 1, 0] and left_out == {'3.png': 'unlabelled'}


@pytest.mark.parametrize('change,said', [
    (dict(image='Dateien'), "has no column 'Dateien' (--image), did you mean 'Datei'?"), (dict(patient='Patient'), "has no column 'Patient' (--patient)"),
    (dict(labels='Fracture,Masse'), "has no column 'Masse' (--labels), did you mean 'Mass'?"), (dict(labels='Fracture,Wer'), "row 2: the label 'Wer' is 'P-7'"), (dict(image='', kind='table'), 'name its columns')])
def test_columns_that_are_not_there_are_named_with_those_that_are(tmp_path, change, said):
    rules = dict(image='Datei', patient='Wer', labels='Fracture,Mass') | change
    assert said in message(import_source, own(tmp_path/'source'), tmp_path/'data', ImportRules(**rules)) and not (tmp_path/'data').exists()


@pytest.mark.parametrize('column,cell,said', [('Gender', 'dog', "row 3: column 'Gender': 'dog' is none of M, F"), ('Alter', 'old', None), ('Age', 'old', "row 3: column 'Age': 'old' is not an age")])
def test_facts_that_a_table_spells_strangely_are_refused_by_row(tmp_path, column, cell, said):
    write(tmp_path/'source/t.csv', f'image,pid,Mass,{column}', '1.png,1,1,', f'2.png,1,0,{cell}')
    for k in '12': picture(tmp_path/f'source/{k}.png')
    rules = ImportRules(image='image', patient='pid', labels='Mass')
    if said: assert said in message(import_source, tmp_path/'source', tmp_path/'data', rules)
    else: assert len(import_source(tmp_path/'source', tmp_path/'data', rules, progress=False)[0]) == 2     # not one of our columns


def test_an_image_in_two_rows_is_refused(tmp_path):
    write(tmp_path/'source/t.csv', 'image,pid,Mass', '1.png,1,1', '1.png,1,0')
    picture(tmp_path/'source/1.png')
    assert "lists '1.png' more than once" in message(import_source, tmp_path/'source', tmp_path/'data', ImportRules(image='image', patient='pid', labels='Mass'))


def test_without_patients_they_are_unknown_and_that_is_said(tmp_path):
    dataset, told, _ = brought(own(tmp_path/'source'), tmp_path/'data', image='Datei', labels='Fracture')
    assert dataset.table.patient_id.isna().all() and 'patients are unknown' in told


# ---- which source

def test_what_is_no_source_is_refused_with_what_was_found(tmp_path):
    write(tmp_path/'source/notes.csv', 'a,b', '1,2')
    assert 'holds no table of labels that is known; looked at notes.csv' in message(import_source, tmp_path/'source', tmp_path/'data')
    (tmp_path/'bare').mkdir()
    assert 'looked at no table at all' in message(import_source, tmp_path/'bare', tmp_path/'data')
    assert 'there is no such folder or table' in message(import_source, tmp_path/'nowhere', tmp_path/'data')
    assert "--kind padchst: expected one of" in message(import_source, tmp_path/'source', tmp_path/'data', ImportRules(kind='padchst')).replace("'", '')


def test_a_kind_can_be_named_where_two_sources_share_a_folder(tmp_path):
    padchest(chexpert(tmp_path/'source'))
    said = message(import_source, tmp_path/'source', tmp_path/'data')
    assert '(padchest)' in said and 'train.csv (chexpert)' in said
    assert brought(tmp_path/'source', tmp_path/'data', kind='chexpert')[0].provenance.name == 'CheXpert'


def test_tables_that_are_no_tables_do_not_stop_the_search(tmp_path):
    (tmp_path/'x.csv').write_bytes(b'\x89PNG\0\0\xff\xfe')
    (tmp_path/'empty.csv').write_bytes(b'')
    write(tmp_path/'deep/train.csv', CHEXPERT)
    assert list(candidates(table_headers(tmp_path)).values()) == ['chexpert']


# ---- files

def test_unreadable_and_missing_images_are_left_out_and_listed(tmp_path):
    root = own(tmp_path/'source')
    (root/'a/1.png').write_bytes(b'no image')
    (root/'b/1.png').unlink()
    dataset, told, left_out = brought(root, tmp_path/'data', image='Datei', patient='Wer', labels='Fracture')
    assert dataset.table.image.tolist() == ['2.png'] and left_out['b/1.png'] == 'not on disk' and left_out['a/1.png'].startswith('cannot be read as an image') and str(tmp_path) not in left_out['a/1.png']
    assert 'not on disk: 1' in told


def test_a_truncated_image_is_found_when_all_pixels_are_read(tmp_path):
    root = own(tmp_path/'source')
    whole = (root/'a/1.png').read_bytes()
    (root/'a/1.png').write_bytes(whole[:45])
    rules = ImportRules(image='Datei', patient='Wer', labels='Fracture')
    assert len(import_source(root, tmp_path/'quick', rules, progress=False)[0]) == 3
    assert len(import_source(root, tmp_path/'whole', rules, check_images=True, progress=False)[0]) == 2


def test_nothing_to_import_says_why(tmp_path):
    root = own(tmp_path/'source')
    for name in ('a/1.png', 'b/1.png', 'c/2.png'): (root/name).unlink()
    assert 'nothing to import: not on disk: 3' in message(import_source, root, tmp_path/'data', ImportRules(image='Datei', labels='Fracture')) and not (tmp_path/'data').exists()


def test_a_name_that_fits_two_files_is_ambiguous_and_left_out(tmp_path):
    for place in ('x', 'y'): picture(tmp_path/place/'1.png')
    files = FileIndex(tmp_path)
    assert files.find('1.png') == ('', f'on disk 2 times: {os.path.join("x", "1.png")}, {os.path.join("y", "1.png")}')
    assert files.find('z/1.png', 1) == ('', 'not on disk')                                         # never the pixels of another patient
    assert files.find('some/y/1.png')[0] == str(tmp_path/'y/1.png') and files.find('y/1.jpg')[0] == str(tmp_path/'y/1.png')


def test_capitals_and_accents_of_another_system_are_the_same_name(tmp_path):
    import unicodedata
    for place, name in (('a', 'BILD_1.PNG'), ('b', unicodedata.normalize('NFD', 'Bild_ä.png')), ('c', 'x.png'), ('c', 'X.png')): picture(tmp_path/place/name)
    files = FileIndex(tmp_path)
    assert files.find('bild_1.png')[0] == str(tmp_path/'a/BILD_1.PNG') and files.find(unicodedata.normalize('NFC', 'B/Bild_ä.png'), 1)[0].startswith(str(tmp_path/'b'))
    assert files.find('X.png')[0] == str(tmp_path/'c/X.png') and files.find('x.jpg')[0] == ''        # the very name goes first; without it, two fit
    assert flat_names([unicodedata.normalize('NFD', 'ä.png')]) == [unicodedata.normalize('NFC', 'ä.png')]


def test_links_are_followed_once(tmp_path):
    picture(tmp_path/'source/real/1.png')
    os.symlink(tmp_path/'source', tmp_path/'source/real/around')
    os.symlink(tmp_path/'source/real', tmp_path/'linked')
    assert FileIndex(tmp_path/'source').find('1.png')[0] and FileIndex(tmp_path/'linked').find('1.png')[0]


@pytest.mark.parametrize('paths', [['a/b.png', 'A/B.png'.replace('A', 'c')], ['x/1.png', 'X/1.png', 'y/1.png'], ['=cmd.png'], ['.hidden/1.png', 'a/1.png'], ['p 1/ü.png'], ['a/b/1.png', 'b/1.png']])
def test_image_names_are_plain_and_unique(paths):
    if paths[:2] == ['x/1.png', 'X/1.png']:
        assert 'cannot be told apart' in message(flat_names, paths)
        return
    names = flat_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert all(not set(name) & set('/\\=: ') and name[0] not in '.-' for name in names)


def test_looking_for_files_does_not_grow_with_the_square_of_their_number(tmp_path, monkeypatch):
    "All images of CheXpert are called view1_frontal.jpg."
    from chestnb.data import import_files
    names = [f'CheXpert-v1.0-small/train/patient{i:05}/study1/view1_frontal.jpg' for i in range(300)]
    for name in names: picture(tmp_path/name, size=(1, 1))
    calls, real = [], import_files.agreement
    monkeypatch.setattr(import_files, 'agreement', lambda *arguments: calls.append(1) or real(*arguments))
    files = FileIndex(tmp_path)
    assert [files.find(name, 2) for name in names] == [(str(tmp_path/name), '') for name in names] and len(calls) == 300


def test_dicom_files_without_ending_are_found(tmp_path):
    for name in ('series/IM0001', 'series/1.2.840.113619.2'): write_dicom(np.full((8, 8), 100, np.uint8), tmp_path/'source'/name, {'ViewPosition': 'AP', 'WindowCenter': 128, 'WindowWidth': 256}, bits=8)
    (tmp_path/'source/series/README').write_text('a text')
    write(tmp_path/'source/t.csv', 'image,pid,Mass', 'IM0001,1,1', '1.2.840.113619.2,2,0', 'README,3,0')
    dataset, _, left_out = brought(tmp_path/'source', tmp_path/'data', image='image', patient='pid', labels='Mass')
    assert dataset.table.image.tolist() == ['IM0001', '1.2.840.113619.2'] and dataset.table.view_position.tolist() == ['AP', 'AP'] and left_out == {'README': 'not on disk'}
    assert grey_of(dataset, 'IM0001') == 100


# ---- whole or absent

@pytest.mark.parametrize('copy', [False, True])
def test_the_source_is_never_changed(tmp_path, copy):
    before = tree(chexpert(tmp_path/'source'))
    dataset, _, _ = brought(tmp_path/'source', tmp_path/'data', copy=copy)
    path = dataset.image_path(dataset.table.image[0])
    assert tree(tmp_path/'source') == before and path.is_symlink() != copy
    assert path.resolve().read_bytes() == (tmp_path/'source/CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg').read_bytes()


@pytest.mark.parametrize('to', ['source', 'source/inside', '.'])
def test_nothing_is_written_into_or_around_the_source(tmp_path, to):
    before = tree(chexpert(tmp_path/'source'))
    assert 'the source, which is never changed' in message(import_source, tmp_path/'source', tmp_path/to)
    assert tree(tmp_path/'source') == before


def test_a_link_to_the_source_is_the_source(tmp_path):
    os.symlink(chexpert(tmp_path/'source'), tmp_path/'other name')
    assert 'lies in the source' in message(import_source, tmp_path/'source', tmp_path/'other name/data')


def test_a_folder_that_is_there_is_not_overwritten_and_a_strangers_not_even_with_the_option(tmp_path):
    brought(chexpert(tmp_path/'source'), tmp_path/'data')
    before = tree(tmp_path/'data')
    assert '--overwrite to replace an earlier import' in message(import_source, tmp_path/'source', tmp_path/'data')
    assert tree(tmp_path/'data') == before
    (tmp_path/'data/my notes.txt').write_text('mine')
    dataset, _ = import_source(tmp_path/'source', tmp_path/'data', ImportRules(findings='Edema'), overwrite=True, progress=False)
    assert dataset.findings == ('Edema',) and (tmp_path/'data/my notes.txt').read_text() == 'mine'
    (tmp_path/'theirs').mkdir()
    (tmp_path/'theirs/file').write_text('x')
    only = write(tmp_path/'source/less.csv', CHEXPERT, (tmp_path/'source/train.csv').read_text().splitlines()[1])
    assert len(import_source(only, tmp_path/'data', overwrite=True, progress=False)[0]) == 1 and len(list((tmp_path/'data/images').iterdir())) == 1
    assert 'was not written by this command' in message(import_source, only, tmp_path/'theirs', overwrite=True)
    assert tree(tmp_path/'theirs') == {'file': b'x'}


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(28, 'No space left on device'), UserError('no')])
def test_what_is_interrupted_leaves_nothing_behind(tmp_path, monkeypatch, error):
    from chestnb.data import importers
    before, calls, place = tree(chexpert(tmp_path/'source')), [], importers.place_image
    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2: raise error
        return place(*arguments)
    monkeypatch.setattr(importers, 'place_image', stop)
    with pytest.raises(type(error)): import_source(tmp_path/'source', tmp_path/'data', progress=False)
    assert len(calls) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ['source'] and tree(tmp_path/'source') == before
    monkeypatch.undo()
    assert len(brought(tmp_path/'source', tmp_path/'data')[0]) == 3


# ---- torchxrayvision's objects

@pytest.fixture(scope='module')
def xrv(): return pytest.importorskip('torchxrayvision')


def test_a_torchxrayvision_object_with_files_is_linked(tmp_path, xrv):
    chexpert(tmp_path/'source')
    dataset = xrv.datasets.CheX_Dataset(str(tmp_path/'source/CheXpert-v1.0-small'), str(tmp_path/'source/train.csv'), views=['*'], unique_patients=False)
    made = import_torchxrayvision(dataset, tmp_path/'data', progress=False)
    assert made.findings == tuple(dataset.pathologies) and made.table.patient_id.tolist() == [1, 2, 3]
    assert labels(made, 'Effusion')['patient00003_study1_view1_frontal.jpg'] == 1 and made.image_path(made.table.image[0]).is_symlink()
    assert [grey_of(made, name) for name in made.table.image] == [10, 30, 70]


def test_subsets_and_merged_objects(tmp_path, xrv):
    rows = ['00000001_000.png,Mass,0,1,58,M,PA,2682,2749,0.143,0.143', '00000001_001.png,No Finding,1,1,58,M,AP,2894,2729,0.143,0.143', '00000002_000.png,Edema|Mass,0,2,80,F,PA,2500,2048,0.171,0.171']
    write(tmp_path/'source/Data_Entry.csv', NIH, *rows)
    for k, row in enumerate(rows): picture(tmp_path/'source/images'/row[:16], 51*k + 51)
    whole = xrv.datasets.NIH_Dataset(str(tmp_path/'source/images'), str(tmp_path/'source/Data_Entry.csv'), views=['*'], unique_patients=False)
    part = import_torchxrayvision(xrv.datasets.SubsetDataset(whole, [2, 0]), tmp_path/'part', progress=False)
    assert part.table.image.tolist() == ['00000002_000.png', '00000001_000.png'] and labels(part, 'Edema') == {'00000002_000.png': 1, '00000001_000.png': 0}
    merged = import_torchxrayvision(xrv.datasets.MergeDataset([whole, whole]), tmp_path/'merged', Provenance('twice'), progress=False)
    assert len(merged) == 6 and [grey_of(merged, name) for name in merged.table.image] == [51, 102, 153]*2 and not merged.image_path(merged.table.image[0]).is_symlink()
    assert merged.table.patient_id.tolist() == [1, 1, 2]*2 and merged.provenance.name == 'twice'


def test_opening_an_object_leaves_the_random_numbers_alone(tmp_path, xrv):
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    brought(chexpert(tmp_path/'source'), tmp_path/'data')
    assert np.random.rand() == expected


# ---- the command

def test_the_command_writes_and_says_what_it_left_out(tmp_path, capsys):
    chestnb_import(str(chexpert(tmp_path/'source')), to=str(tmp_path/'data'))
    said = capsys.readouterr().out
    assert 'Left out (2, listed in left_out.csv)' in said and 'not a medical device' in said and len(ChestDataset(tmp_path/'data')) == 3
    assert '--to DIR' in message(chestnb_import, str(tmp_path/'source'))


def test_help_is_quick_and_says_what_the_command_is_not_for(tmp_path, root):
    script = tmp_path/'chestnb_import'
    script.write_text("import sys\nfrom chestnb.commands.importing import chestnb_import\ntry: chestnb_import()\nexcept SystemExit: pass\n"
                      "print([name for name in ('torch', 'pandas', 'torchxrayvision') if name in sys.modules])\n")
    said = subprocess.run([sys.executable, str(script), '--help'], capture_output=True, text=True, check=True, env={**os.environ, 'PYTHONPATH': str(root)}).stdout
    said = ' '.join(said.split())
    assert 'Not for clinical use' in said and said.strip().endswith('[]') and all(option in said for option in ('--to', '--kind', '--unknown', '--blank', '--readers', '--copy', '--overwrite'))


def test_the_shared_chexpert_case(tmp_path, root):
    maker = root.parent/'shared/cases/make_cases.py'
    if not maker.is_file(): pytest.skip('the shared cases are not here (looked in ../shared/cases beside the repository)')
    subprocess.run([sys.executable, str(maker), str(tmp_path/'cases')], check=True, capture_output=True)
    dataset, told, left_out = brought(tmp_path/'cases/tables/chexpert', tmp_path/'data')
    assert dataset.table.patient_id.tolist() == [1, 2, 3, 4] and set(left_out.values()) == {'another view: L'} and len(left_out) == 4
    assert dataset.findings == tuple(CHEXPERT.split(',')[6:]) and 'uncertain label' in told


def plain(folder, text, labels='lab'):
    "A data set of a plain table with the columns file and who."
    for name in ('a.png', 'b.png'): picture(folder/'source'/name)
    write(folder/'source'/'t.csv', *text.splitlines())
    return import_source(folder/'source'/'t.csv', folder/'out', ImportRules(image='file', patient='who', labels=labels), progress=False)[0]


@pytest.mark.parametrize('cell, expected', [('mass;EDEMA', {'Mass', 'Edema'}), ("\"['Mass', 'Edema']\"", {'Mass', 'Edema'}), ('Normal', {'No Finding'})])
def test_label_texts_are_split_and_one_spelling_is_one_finding(tmp_path, cell, expected):
    data = plain(tmp_path, f'file,who,lab\na.png,1,Mass|Edema\nb.png,2,{cell}')
    assert data.findings == ('Edema', 'Mass') and {name for name in (*data.findings, 'No Finding') if data.table[name].iloc[1]} == expected


def test_label_texts_that_contradict_themselves_are_refused(tmp_path):
    assert "t.csv, row 3: 'No Finding' stands beside a finding" in message(plain, tmp_path, 'file,who,lab\na.png,1,Mass\nb.png,2,Mass|No Finding')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('text, labels, reason', [('file,who,lab\na.png,1,normal\nb.png,2,normal', 'lab', 'names no finding'), ('file,who,Mass', 'Mass', 'the table has no row'),
                                                  ('file,who,Mass\na.png,p1,1\nb.png,P1,0', 'Mass', 'differ only by capital letters'), ('file,who,Mass\na.png,1,1', ' , ', 'name its columns')])
def test_refusals_speak_of_the_source_and_leave_nothing(tmp_path, text, labels, reason):
    said = message(plain, tmp_path, text, labels)
    assert reason in said and '.tmp' not in said and os.listdir(tmp_path) == ['source']


def test_a_reader_who_says_nothing_is_no_negative(tmp_path):
    for name in ('a.png', 'b.png'): picture(tmp_path/'source'/name)
    write(tmp_path/'source'/'image_labels_train.csv', 'image_id,rad_id,Aortic enlargement,Atelectasis,No finding', 'a,R1,0,,0', 'a,R2,0,,0', 'b,R1,0,1,0', 'b,R2,0,,0')
    table = import_source(tmp_path/'source', tmp_path/'out', ImportRules(readers='majority'), progress=False)[0].table
    np.testing.assert_array_equal(table[['Aortic enlargement', 'Atelectasis', 'No Finding']].to_numpy(float), [[0, np.nan, np.nan], [0, 1, 0]])


@pytest.mark.parametrize('cell', ['x', '2', '0.5'])
def test_a_reading_that_is_no_label_is_refused(tmp_path, cell):
    picture(tmp_path/'source'/'a.png')
    write(tmp_path/'source'/'image_labels_train.csv', 'image_id,rad_id,Aortic enlargement,Atelectasis,No finding', f'a,R1,0,{cell},0')
    assert "row 2 of the labels: 'Atelectasis' is" in message(import_source, tmp_path/'source', tmp_path/'out', progress=False) and not (tmp_path/'out').exists()


# ---- tables that somebody saved again

def saved_again(path, how):
    "The same table with other letters in its header, other separators, another encoding."
    packed = path.name.endswith('.gz')
    content = path.read_bytes()
    header, *rows = csv.reader(io.StringIO((gzip.decompress(content) if packed else content).decode()))
    if how == 'index': header, rows = ['', *header], [[str(k), *row] for k, row in enumerate(rows)]
    header = [{'lower': str.lower, 'upper': str.upper, 'spaces': lambda name: f' {name} '.replace('_', ' ')}.get(how, str)(name) for name in header]
    lines = io.StringIO()
    if how == 'trailing': header, rows = header + [''], [row + [''] for row in rows]
    csv.writer(lines, delimiter=';' if how == 'semicolons' else '\t' if how == 'tabs' else ',', quoting=csv.QUOTE_ALL if how == 'quoted' else csv.QUOTE_MINIMAL).writerows([header, *rows])
    content = lines.getvalue().encode('utf-16' if how == 'utf16' else 'utf-8-sig' if how in ('semicolons', 'bom') else 'utf-8')
    path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize('how', ['lower', 'upper', 'spaces', 'semicolons', 'tabs', 'bom', 'utf16', 'index', 'quoted', 'trailing'])
@pytest.mark.parametrize('source', ['chexpert', 'mimic', 'padchest', 'vindr', 'vindr_boxes', 'rsna'])
def test_a_table_that_was_saved_again_is_the_same_source(tmp_path, source, how):
    make = dict(chexpert=chexpert, mimic=mimic, padchest=padchest, vindr=vindr, vindr_boxes=lambda root: vindr(root, labels=False), rsna=lambda root: rsna(root)[0])[source]
    rules = dict(readers='majority') if 'vindr' in source else {}
    expected, _, left_out = brought(make(tmp_path/'source'), tmp_path/'expected', **rules)
    for path in sorted((tmp_path/'source').glob('*.csv*')): saved_again(path, how)
    dataset, _, again = brought(tmp_path/'source', tmp_path/'data', **rules)
    pd.testing.assert_frame_equal(dataset.table, expected.table)
    assert again == left_out and dataset.findings == expected.findings
    assert dataset.boxes is expected.boxes is None or dataset.boxes.equals(expected.boxes)


def test_a_column_that_a_source_needs_is_named(tmp_path):
    root, _ = rsna(tmp_path/'source')
    path = root/'stage_2_detailed_class_info.csv'
    path.write_text(path.read_text().replace('patientId,class', 'patientId,patient_id,class').replace(',Normal', ',,Normal'))
    assert "'patientId' and 'patient_id' are one column. Delete one of them" in message(import_source, root, tmp_path/'data')


def test_boxes_that_are_there_twice_are_written_once(tmp_path):
    root, _ = rsna(tmp_path/'source')
    path = root/'stage_2_train_labels.csv'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines, lines[2]]) + '\n')
    dataset, told, _ = brought(root, tmp_path/'data')
    assert len(dataset.boxes) == 2 and 'Boxes left out: 1 box that is there twice.' in told


def test_words_of_chexpert_in_other_letters(tmp_path):
    root = chexpert(tmp_path/'source')
    expected, _, _ = brought(root, tmp_path/'expected')
    text = (root/'train.csv').read_text()
    (root/'train.csv').write_text(text.replace(',Frontal,', ',FRONTAL,').replace(',Lateral,', ',lateral,').replace(',AP,', ',ap,').replace('Female,68', 'female,68 years').replace('Male,45', 'M,45Y'))
    dataset, _, left_out = brought(root, tmp_path/'data')
    pd.testing.assert_frame_equal(dataset.table, expected.table)
    assert left_out['train/patient00003/study1/view2_lateral.jpg'] == 'another view: lateral'
    (root/'train.csv').write_text(text.replace('Female,68', 'Female,90+').replace('Male,45', 'Male,forty'))
    assert "row 3: column 'Age': 'forty' is not an age" in message(import_source, root, tmp_path/'new')
