"""The report of anybody's predictions: what it takes, what it refuses, what it leaves, and whether page and files agree."""
import csv
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import chestnb.core.files as core_files
import chestnb.evaluation.report.document as evaluation_report_document
import chestnb.evaluation.report.page as evaluation_report_page
from typed import typed
from chestnb.core.errors import UserError
from chestnb.core.files import MANIFEST, read_csv
from chestnb.data.findings import FINDINGS
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.data.provenance import NIH_PROVENANCE, PHANTOM_PROVENANCE, Provenance
from chestnb.data.tables import read_metadata
from chestnb.evaluation.predictions import IMAGE, predictions_frame, read_predictions
from chestnb.evaluation.report.cards import SECTIONS, TO_BE_FILLED, section_number
from chestnb.evaluation.report.document import cell_text
from chestnb.evaluation.report.models import published_text
from chestnb.evaluation.report.page import identity_of, json_value, make_report, write_report
from chestnb.evaluation.report.scores import describe_part, rankable, split_facts
from chestnb.evaluation.report.study import make_study, official_part, resource_table, Study
from chestnb.evaluation.scored import join



def simulated(table, seed=0, strength=2.):
    "Probabilities that know something of the labels of a table."
    random = np.random.default_rng(seed)
    targets = table[list(FINDINGS)].to_numpy(float)
    return predictions_frame(table['image'], 1/(1 + np.exp(-(strength*targets - 2.5 + random.normal(size=targets.shape)))))


PIXEL = bytes.fromhex('89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489')


@pytest.fixture(autouse=True)
def figures_not_drawn(request, monkeypatch):
    "Drawing takes most of the time; only the fixtures `full` and `bare`, the command and `test_same_input_same_numbers` need it."
    if 'same_input' not in request.node.name: monkeypatch.setattr(evaluation_report_document, 'figure_bytes', lambda figure, ending, dpi=150: PIXEL)


@pytest.fixture(scope='module')
def place(embedded, tmp_path_factory):
    "Test, validation and a second model's predictions of the embedded set's patients, as files."
    folder = tmp_path_factory.mktemp('report')
    table = read_metadata(embedded/'data.csv')
    patients = np.unique(table.patient_id)
    test, valid = (table[table.patient_id.isin(some)].reset_index(drop=True) for some in (patients[:130], patients[130:260]))
    for name, rows, seed, strength in (('test', test, 0, 2.), ('valid', valid, 1, 2.), ('other', test, 2, 1.)):
        simulated(rows, seed, strength).to_csv(folder/f'{name}.csv', index=False)
    return folder, table, test, valid


@pytest.fixture(scope='module')
def full(place):
    "The folder of a report with every section."
    folder, table, *_ = place
    study = make_study(folder/'test.csv', table, folder/'valid.csv', folder/'other.csv', name='simulated', n_resamples=40)
    write_report(study, folder/'full', command='chestnb_report test.csv', disable=True)
    return folder/'full'


@pytest.fixture(scope='module')
def bare(place):
    "The folder of a report without validation patients and without a second model."
    folder, table, *_ = place
    write_report(make_study(folder/'test.csv', table, name='bare', n_resamples=40), folder/'bare', disable=True)
    return folder/'bare'


class Page(HTMLParser):
    "A page taken apart: tags, what it loads, tables with their cells, ids and links."
    VOID = {'meta', 'img', 'br', 'link', 'input', 'hr', 'source', 'area', 'base', 'col', 'embed', 'track', 'wbr'}

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.tables, self.cell, self.text = [], [], [], [], {}, None, ''
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in self.VOID: self.open.append(tag)
        if 'id' in attrs: self.ids.append(attrs['id'])
        if tag == 'a': self.links.append(attrs.get('href', ''))
        if tag == 'table':
            self.rows = self.tables.setdefault(attrs['data-csv'], [])
        if tag == 'tr' and 'table' in self.open: self.rows.append([])
        if tag in ('td', 'th') and 'tbody' in self.open: self.cell = ''

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f'</{tag}> closes something else'
        if tag in ('td', 'th') and self.cell is not None:
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.text += data
        if self.cell is not None: self.cell += data


@pytest.fixture(scope='module', params=['full', 'bare'])
def built(request, full, bare):
    folder = {'full': full, 'bare': bare}[request.param]
    html = (folder/'report.html').read_text(encoding='utf-8')
    return folder, html, Page(html)


# The page

def test_page_is_well_formed(built):
    _, html, page = built
    assert html.startswith('<!DOCTYPE html>') and page.open == []
    assert len(page.ids) == len(set(page.ids)), 'an id is there twice'
    assert ('html', {'lang': 'en'}) in page.tags


def test_page_loads_nothing(built):
    _, html, page = built
    for tag, attrs in page.tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed', 'video', 'audio', 'base'), tag
        for name in ('src', 'srcset', 'poster', 'background', 'data'): assert attrs.get(name, 'data:').startswith('data:'), (tag, attrs)
        assert not any(name.startswith('on') for name in attrs)
    style = re.search(r'<style>(.*?)</style>', html, re.S)[1]
    assert 'url(' not in style and '@import' not in style and '&#' not in style


def test_every_figure_has_alt_text_and_is_a_picture(built):
    folder, _, page = built
    images = [attrs for tag, attrs in page.tags if tag == 'img']
    assert len(images) >= 5
    assert all(len(attrs['alt']) > 20 and attrs['src'].startswith('data:image/') for attrs in images)
    names = {p.stem for p in (folder/'figures').iterdir()}
    assert len(images) == len(names)
    for name in names:
        assert (folder/'figures'/f'{name}.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
        assert b'<svg' in (folder/'figures'/f'{name}.svg').read_bytes()[:1500]


def test_contents_lead_to_sections(built):
    _, _, page = built
    targets = [link[1:] for link in page.links if link.startswith('#')]
    assert set(targets) <= set(page.ids)
    assert [*SECTIONS] == [t for t in dict.fromkeys(targets[1:])]


def test_fits_phone_and_paper(built):
    _, html, page = built
    assert ('meta', {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'}) in page.tags
    assert re.search(r'@media \(max-width: \d+rem\)', html) and '@media print' in html and 'break-inside: avoid' in html
    assert re.search(r'\.scroll \{[^}]*overflow-x: auto', html)
    assert 'table.words' in html   # tables of words are stacked on a phone
    assert html.count('<div class="scroll"') == sum(tag in ('table', 'img') for tag, _ in page.tags), 'a table or figure that cannot scroll'


def test_says_what_it_is_not_for_and_that_it_is_synthetic(built):
    _, _, page = built
    assert 'Not for clinical use' in page.text and 'Synthetic images' in page.text


def numbers_in(text):
    "Numbers of a cell with their decimals and whether they are percentages."
    for sign, digits, percent in re.findall(r'([-+−]?)((?:\d[\d,]*)(?:\.\d+)?)(%?)', text):
        value = float(digits.replace(',', ''))
        decimals = len(digits.partition('.')[2])
        yield (-value if sign in '-−' and sign else value), decimals, bool(percent)


def is_number(text): return re.fullmatch(r'(< )?[+-]?[\d,]+(\.\d+)?%?( \[[^\]]+\])?', text.strip()) is not None


def test_every_number_of_every_table_is_in_its_csv_and_in_the_json(built):
    folder, _, page = built
    held = json.loads((folder/'numbers.json').read_text(encoding='utf-8'))['tables']
    assert page.tables, 'no tables'
    checked = 0
    for path, rows in page.tables.items():
        with open(folder/path, encoding='utf-8') as file: cells = [cell for row in list(csv.reader(file))[1:] for cell in row]
        in_csv = np.array([float(cell) for cell in cells if re.fullmatch(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', cell)])
        records = held[Path(path).stem]
        in_json = np.array([float(v) for record in records for v in record.values() if isinstance(v, (int, float)) and not isinstance(v, bool)])
        for row in rows:
            for cell in row[1:]:
                if not is_number(cell):
                    continue
                for value, decimals, percent in numbers_in(cell.replace('< ', '')):
                    if cell.startswith('<'): continue
                    for numbers in (in_csv, in_json):
                        scale = 100 if percent else 1
                        assert (np.abs(numbers*scale - value) <= .5*10**-decimals + 1e-9).any(), (path, cell)
                    checked += 1
    assert checked > 300


def test_every_table_and_figure_is_a_file_and_nothing_else_is_there(built):
    folder, _, page = built
    held = json.loads((folder/'numbers.json').read_text(encoding='utf-8'))
    assert {p.stem for p in (folder/'tables').iterdir()} == set(held['tables'])
    assert {Path(path).stem for path in page.tables} <= set(held['tables'])
    assert {p.name for p in folder.iterdir()} == {'report.html', 'numbers.json', 'model_card.md', 'data_card.md', 'tables', 'figures', MANIFEST}
    assert len(held['identity']['files'][0]['sha256']) == 64


def test_without_validation_nothing_is_chosen(bare):
    text = Page((bare/'report.html').read_text(encoding='utf-8')).text
    held = json.loads((bare/'numbers.json').read_text(encoding='utf-8'))
    assert not {'thresholds', 'threshold_drift', 'subgroup_rates', 'comparison', 'calibration_after'} & set(held['tables'])
    assert text.count('Not in this report') == 2 and 'nothing was chosen on the test images' in text
    assert held['facts']['ece_after'] == ''


def test_with_validation_thresholds_are_those_of_validation(full, place):
    from chestnb.evaluation.thresholds import choose_thresholds
    folder, table, test, valid = place
    frame = pd.read_csv(full/'tables'/'thresholds.csv').set_index('finding')
    expected = choose_thresholds(join(read_predictions(folder/'valid.csv'), valid, part='valid')).by_finding
    for finding, threshold in expected.items(): assert frame.loc[finding, 'threshold'] == pytest.approx(threshold)
    scores = read_predictions(folder/'test.csv').set_index(IMAGE).loc[test.image]
    for finding, threshold in expected.items():
        flagged, truth = scores[f'prob_{finding}'].to_numpy() >= threshold, test[finding].to_numpy()
        if truth.any(): assert frame.loc[finding, 'sensitivity'] == pytest.approx(flagged[truth].mean())


def test_sections_do_not_depend_on_their_order(place):
    "Subgroups need the thresholds, and get them without the section on thresholds."
    from chestnb.evaluation.report.document import Report
    from chestnb.evaluation.report.groups import section_subgroups
    folder, table, *_ = place
    study, report = make_study(folder/'test.csv', table, folder/'valid.csv', n_resamples=0), Report('alone')
    before = dict(study.thresholds.by_finding)
    section_subgroups(report, study)
    assert 'subgroup_rates' in report.tables and study.thresholds.by_finding == before


def test_scores_equal_scikit_learn(full, place):
    from sklearn.metrics import average_precision_score, roc_auc_score
    folder, _, test, _ = place
    frame = pd.read_csv(full/'tables'/'discrimination.csv').set_index('finding')
    scores = read_predictions(folder/'test.csv').set_index(IMAGE).loc[test.image]
    for finding in FINDINGS:
        if not test[finding].any(): continue
        assert frame.loc[finding, 'auroc'] == pytest.approx(roc_auc_score(test[finding], scores[f'prob_{finding}']), abs=1e-12)
        assert frame.loc[finding, 'average_precision'] == pytest.approx(average_precision_score(test[finding], scores[f'prob_{finding}']), abs=1e-12)


def test_comparison_is_this_minus_other(full):
    frame = pd.read_csv(full/'tables'/'comparison.csv').set_index('finding')
    assert frame.loc['macro', 'auroc_difference'] == pytest.approx(frame.loc['macro', 'auroc_second'] - frame.loc['macro', 'auroc_first'])
    assert frame.loc['macro', 'auroc_difference'] > 0   # `other` was simulated to know less


def test_same_input_same_numbers(place, full, tmp_path):
    folder, table, *_ = place
    study = make_study(folder/'test.csv', table, folder/'valid.csv', folder/'other.csv', name='simulated', n_resamples=40)
    write_report(study, tmp_path/'again', command='chestnb_report test.csv', disable=True)
    files = sorted(p.relative_to(full) for p in full.rglob('*') if p.is_file())
    assert files == sorted(p.relative_to(tmp_path/'again') for p in (tmp_path/'again').rglob('*') if p.is_file())
    for file in files:
        if file.name in ('report.html', 'numbers.json', MANIFEST): continue   # these have the time in them
        assert (full/file).read_bytes() == (tmp_path/'again'/file).read_bytes(), file
    numbers = [json.loads((f/'numbers.json').read_text()) for f in (full, tmp_path/'again')]
    assert numbers[0]['tables'] == numbers[1]['tables'] and numbers[0]['facts'] == numbers[1]['facts']


def test_names_are_escaped(place, tmp_path):
    folder, table, *_ = place
    name = '<script>alert("x")</script> & Co'
    write_report(make_study(folder/'test.csv', table, name=name, n_resamples=0), tmp_path/'odd', disable=True)
    html = (tmp_path/'odd'/'report.html').read_text(encoding='utf-8')
    assert '<script' not in html and '&lt;script&gt;' in html and Page(html).open == []


def test_no_resamples_means_no_interval_of_the_ece(place, tmp_path):
    folder, table, *_ = place
    write_report(make_study(folder/'test.csv', table, n_resamples=0), tmp_path/'none', disable=True)
    scores, calibration = (pd.read_csv(tmp_path/'none'/'tables'/f'{name}.csv') for name in ('discrimination', 'calibration'))
    assert scores['auroc_low'].notna().any(), 'intervals of scores need no resamples'
    assert calibration['ece'].notna().any() and calibration['ece_low'].isna().all()
    assert 'the ECE has no interval' in Page((tmp_path/'none'/'report.html').read_text(encoding='utf-8')).text
    with pytest.raises(UserError, match='n_resamples'): make_study(folder/'test.csv', table, n_resamples=-1)


def test_absent_findings_are_said_and_not_zero(place, tmp_path):
    folder, table, test, _ = place
    few = test[~test['Hernia']].reset_index(drop=True)
    simulated(few).to_csv(tmp_path/'few.csv', index=False)
    report = write_report(make_study(tmp_path/'few.csv', table, n_resamples=20), tmp_path/'out', disable=True)
    frame = pd.read_csv(tmp_path/'out'/'tables'/'discrimination.csv').set_index('finding')
    assert math.isnan(frame.loc['Hernia', 'auroc']) and 'Hernia' in report.facts['absent']
    html = Page((tmp_path/'out'/'report.html').read_text(encoding='utf-8'))
    assert 'Hernia: no positive or no negative image' in html.text
    row = next(row for row in html.tables['tables/discrimination.csv'] if row and row[0] == 'Hernia')
    assert row[4] == '–'


@pytest.mark.parametrize('findings', [(), ('Mass',)])
def test_nearly_nothing_to_score_still_gives_a_page(place, tmp_path, findings):
    folder, table, test, _ = place
    rows = test[~test[[f for f in FINDINGS if f not in findings]].any(axis=1)].reset_index(drop=True)
    assert len(rows) > 5
    simulated(rows).to_csv(tmp_path/'p.csv', index=False)
    write_report(make_study(tmp_path/'p.csv', table, n_resamples=10), tmp_path/'out', disable=True)
    assert Page((tmp_path/'out'/'report.html').read_text(encoding='utf-8')).open == []


# What nobody knows, whose findings, whose images

def own_table(n_patients=60, findings=('Fracture', 'Support Devices'), first=1, seed=0):
    "A hospital's table: its own findings, some labels unknown, and no sex, view, age or follow-up."
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(first, first + n_patients), 2)
    table = pd.DataFrame({'image': [f'h{first}_{i}.png' for i in range(len(patients))], 'patient_id': patients})
    for finding in findings: table[finding] = np.where(random.random(len(table)) < .15, np.nan, (random.random(len(table)) < .3).astype(float))
    for name in ('follow_up', 'age', 'sex', 'view_position'): table[name] = None
    table.attrs['findings'] = tuple(findings)
    return table


def own_predictions(table, seed=0):
    targets = table[list(table.attrs['findings'])].fillna(0).to_numpy(float)
    scores = 1/(1 + np.exp(-(1.5*targets - 1 + np.random.default_rng(seed).normal(size=targets.shape))))
    return predictions_frame(table['image'], scores, table.attrs['findings'])


def written(table, tmp_path, valid=True, name='p', **options):
    "A report on every second patient, with the others as validation."
    half = (pd.factorize(table.patient_id)[0] % 2 == 0)
    paths = {}
    for part, rows in (('test', half), ('valid', ~half)):
        frame = table[rows]
        frame.attrs.update(table.attrs)
        own_predictions(frame).to_csv(paths.setdefault(part, tmp_path/f'{name}_{part}.csv'), index=False)
    study = make_study(paths['test'], table, paths['valid'] if valid else None, n_resamples=10, **options)
    report = write_report(study, tmp_path/name, disable=True)
    page = Page((tmp_path/name/'report.html').read_text(encoding='utf-8'))
    assert page.open == []
    return study, report, page


@pytest.mark.parametrize('valid', [True, False])
def test_unknown_sex_view_age_and_follow_up_are_said_and_the_page_is_made(tmp_path, valid):
    _, report, page = written(own_table(), tmp_path, valid)
    row = dict(zip([heading for heading, _ in report.tables['parts'].headings], page.tables['tables/parts.csv'][1]))
    assert row['Female'] == row['AP view'] == row['Median age'] == row['Follow-up images'] == '–'
    assert row['Unknown'] == 'sex of all, view of all, age of all, follow-up of all'
    assert report.facts['subgroup_text'].count('unknown for all images') == 4
    assert [row[0] for row in page.tables['tables/subgroups.csv'] if row] == ['all images']


def test_shares_are_of_the_known(tmp_path):
    table = own_table()
    table['sex'] = [None, 'F', 'M', 'F']*30
    study = written(table, tmp_path)[0]
    row = describe_part(study.scored, 'test')
    sexes = study.scored.table['sex'].dropna()
    assert row['female'] == (sexes == 'F').mean() and row['sex_unknown'] == len(study.scored) - len(sexes) > 0


@pytest.mark.parametrize('findings', [('Fracture',), ('Fracture', 'Support Devices', 'Lung Opacity'), ('No Finding at all', 'Enlarged Cardiomediastinum')])
def test_any_findings_with_unknown_labels(tmp_path, findings):
    table = own_table(findings=findings)
    study, report, page = written(table, tmp_path)
    assert study.scored.findings == findings and report.tables['discrimination'].frame['finding'].tolist()[:len(findings)] == list(findings)
    for finding in findings:
        unknown = study.scored.table[finding].isna().sum()
        assert unknown > 0 and f'{unknown} of {finding} (test)' in page.text
    assert '14 findings' not in page.text and 'Fourteen' not in page.text
    from sklearn.metrics import roc_auc_score
    frame = read_csv(tmp_path/'p'/'tables'/'discrimination.csv').set_index('finding')
    known = study.scored.table[findings[0]].notna()
    expected = roc_auc_score(study.scored.table[findings[0]][known].astype(int), study.scored.scores[known, 0])
    assert frame.loc[findings[0], 'auroc'] == pytest.approx(expected, abs=1e-12)
    assert frame.loc[findings[0], 'unknown'] == (~known).sum()


def test_a_named_policy_decides_unknown_labels_and_is_said(tmp_path):
    study, report, page = written(own_table(), tmp_path, unknown='negative')
    assert study.scored.unknown == {} and 'count as negative' in page.text


def test_no_patient_number_makes_images_synthetic(tmp_path):
    _, report, page = written(own_table(first=90_000_000), tmp_path, name='hospital')
    assert not report.facts['synthetic'] and 'ynthetic images' not in page.text
    assert 'images of real patients' in page.text and 'Real patients' in (tmp_path/'hospital'/'data_card.md').read_text(encoding='utf-8')
    assert 'Source not stated' in page.text
    table = own_table()
    table.attrs['provenance'] = PHANTOM_PROVENANCE
    _, report, page = written(table, tmp_path, name='phantoms')
    assert report.facts['synthetic'] and 'Synthetic images' in page.text and 'images of real patients' not in page.text


def test_what_a_data_set_states_is_in_its_card(tmp_path):
    table = own_table()
    table.attrs['provenance'] = Provenance('St. Elsewhere', 'its archive', 'nobody may see it', citation='Me 2026')
    _, _, page = written(table, tmp_path)
    card = (tmp_path/'p'/'data_card.md').read_text(encoding='utf-8')
    assert all(said in card for said in ('St. Elsewhere', 'its archive', 'nobody may see it', 'Me 2026'))
    assert 'Source not stated' not in page.text


ODD = ('<script>alert(1)</script>', 'a, "b" & \'c\'', '=1+1', '$x_')


def test_odd_names_of_findings_models_and_files_are_only_odd(tmp_path, monkeypatch):
    monkeypatch.undo()                                               # draw: a name with $ must not be taken for a formula
    (tmp_path/'<b>folder').mkdir()
    table = own_table(findings=ODD)
    table.attrs['provenance'] = Provenance('<i>Hospital</i>')
    for name in ('<b>mine', '$x_^'):
        study, report, page = written(table, tmp_path/'<b>folder', name=name)
        folder = tmp_path/'<b>folder'/name
        html = (folder/'report.html').read_text(encoding='utf-8')
        assert '<script' not in html and '<b>' not in html and '<i>' not in html and '&lt;script&gt;alert(1)' in html
        assert {*ODD} <= {row[0] for row in page.tables['tables/discrimination.csv'] if row} | {odd for odd in ODD if '_' in odd}
        assert read_csv(folder/'tables'/'discrimination.csv')['finding'].tolist()[:4] == list(ODD)
        raw = (folder/'tables'/'discrimination.csv').read_text(encoding='utf-8')
        assert not re.search(r'^=', raw, re.M)
        assert '<' not in (folder/'model_card.md').read_text(encoding='utf-8') + (folder/'data_card.md').read_text(encoding='utf-8')


def test_sections_are_numbered_without_gaps(built):
    _, html, _ = built
    headings = re.findall(r'<h2 id="(\w+)"[^>]*>(\d+)\. ([^<]*)</h2>', html)
    assert [(anchor, int(number), title) for anchor, number, title in headings] == [(anchor, section_number(anchor), title) for anchor, title in SECTIONS.items()]


def test_another_model_with_fewer_findings_is_compared_on_the_common_ones(place, tmp_path):
    folder, table, *_ = place
    read_predictions(folder/'other.csv').drop(columns='prob_Mass').to_csv(tmp_path/'fewer.csv', index=False)
    report = write_report(make_study(folder/'test.csv', table, compare=tmp_path/'fewer.csv', n_resamples=0), tmp_path/'out', disable=True)
    assert 'Mass' not in report.tables['comparison'].frame['finding'].tolist() and 'Mass' in report.facts['compare_text']


# What it recognises (the reader itself is tested in test_evaluate.py)

def test_recognition_is_said_on_page(place, tmp_path):
    folder, table, *_ = place
    ours = read_predictions(folder/'test.csv')
    ours.rename(columns={c: c.removeprefix('prob_').replace('_', ' ') for c in ours}).to_csv(tmp_path/'plain.csv', index=False)
    report = write_report(make_study(tmp_path/'plain.csv', table, n_resamples=0), tmp_path/'out', disable=True)
    text = Page((tmp_path/'out'/'report.html').read_text(encoding='utf-8')).text
    assert 'Columns recognised' in text and report.facts['notes'][0].startswith('Test: plain.csv: ')


# What it refuses

def refused(place, tmp_path, frame, words, **options):
    folder, table, *_ = place
    frame.to_csv(tmp_path/'bad.csv', index=False)
    with pytest.raises(UserError, match=words): write_report(make_study(tmp_path/'bad.csv', table, n_resamples=5, **options), tmp_path/'out', disable=True)
    assert not (tmp_path/'out').exists()


def test_what_cannot_be_scored_is_refused(place, tmp_path):
    ours = read_predictions(place[0]/'test.csv')
    refused(place, tmp_path, ours.assign(prob_Mass=ours.prob_Mass.where(ours.index != 3)), 'not a number')
    refused(place, tmp_path, pd.concat([ours, ours.tail(1)]), 'more than one row')
    refused(place, tmp_path, ours.assign(**{c: ours[c].round() for c in ours.columns[1:]}), 'decisions')
    refused(place, tmp_path, ours.rename(columns={IMAGE: 'who'}), 'name of the image')
    refused(place, tmp_path, ours.head(0), 'no rows')
    refused(place, tmp_path, ours.assign(**{IMAGE: 'z' + ours[IMAGE]}), 'in the table')


def test_shared_patients_other_images_and_rules(place, tmp_path):
    folder, table, test, _ = place
    ours = read_predictions(folder/'test.csv')
    sibling = test[test.patient_id.duplicated(keep=False)].iloc[:1]
    rest = ours[~ours[IMAGE].isin(sibling.image)]
    ours[ours[IMAGE].isin(sibling.image)].to_csv(tmp_path/'sibling.csv', index=False)
    refused(place, tmp_path, rest, 'both the test and the validation', valid=tmp_path/'sibling.csv')   # another image of a tested patient
    refused(place, tmp_path, rest, 'same images', compare=folder/'other.csv')
    refused(place, tmp_path, ours, 'rule is', rule='best')
    refused(place, tmp_path, ours, 'sensitivity', rule='sensitivity', valid=folder/'valid.csv')
    with pytest.raises(UserError, match='no such file'): make_study(tmp_path/'none.csv', table)
    read_predictions(folder/'valid.csv').drop(columns='prob_Mass').to_csv(tmp_path/'fewer.csv', index=False)
    refused(place, tmp_path, ours, 'no column for Mass', valid=tmp_path/'fewer.csv')


# Whole or absent

def test_a_failure_leaves_the_old_report_and_nothing_else(small, tmp_path, monkeypatch):
    identity, report = small
    report.write(tmp_path/'out', identity)
    before = {p: p.read_bytes() for p in (tmp_path/'out').rglob('*') if p.is_file()}
    def fails(*_, **__): raise OSError(28, 'No space left on device')
    for name in ('write_csv', 'write_json', 'write_text', 'write_atomically'):
        with monkeypatch.context() as patched:
            patched.setattr(evaluation_report_page, name, fails)
            for folder in ('out', 'new'):
                with pytest.raises(OSError): report.write(tmp_path/folder, identity)
        assert {p: p.read_bytes() for p in (tmp_path/'out').rglob('*') if p.is_file()} == before
        assert [p.name for p in tmp_path.iterdir() if not p.name.endswith('.lock')] == ['out']


def test_other_reports_and_other_folders_are_left_alone(place, tmp_path):
    folder, table, *_ = place
    study, changed = (make_study(folder/'test.csv', table, n_resamples=0, seed=seed) for seed in (0, 1))
    write_report(study, tmp_path/'out', disable=True)
    write_report(study, tmp_path/'out', disable=True)                # the same report again
    with pytest.raises(UserError, match='--overwrite'): write_report(changed, tmp_path/'out', disable=True)
    assert json.loads((tmp_path/'out'/'numbers.json').read_text())['identity']['seed'] == 0
    write_report(changed, tmp_path/'out', overwrite=True, disable=True)
    assert json.loads((tmp_path/'out'/'numbers.json').read_text())['identity']['seed'] == 1
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'holiday.jpg').write_text('x')
    (tmp_path/'file').write_text('x')
    for name in ('mine', 'file'):
        with pytest.raises(UserError, match='not a report'): write_report(study, tmp_path/name, overwrite=True, disable=True)
    assert (tmp_path/'mine'/'holiday.jpg').exists() and (tmp_path/'file').is_file()
    (tmp_path/'empty').mkdir()
    write_report(study, tmp_path/'empty', disable=True)              # an empty folder may be used
    assert (tmp_path/'empty'/'report.html').exists()


def test_labels_are_part_of_what_makes_two_reports_the_same(place, tmp_path):
    folder, table, test, _ = place
    write_report(make_study(folder/'test.csv', table, n_resamples=0), tmp_path/'out', disable=True)
    relabelled = table.assign(Mass=table['Mass'] ^ (table['image'] == test['image'].iloc[0]))
    with pytest.raises(UserError, match='--overwrite'): write_report(make_study(folder/'test.csv', relabelled, n_resamples=0), tmp_path/'out', disable=True)


@pytest.fixture(scope='module')
def small(place):
    "A study and its report, to be written again and again."
    folder, table, *_ = place
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluation_report_document, 'figure_bytes', lambda figure, ending, dpi=150: PIXEL)
        study = make_study(folder/'test.csv', table, n_resamples=0)
        return json_value(identity_of(study)), make_report(study, disable=True)


def filled_in(folder):
    "What people do with a report: fill in the card, add a note and a folder of their own."
    (folder/'model_card.md').write_text('Owner: us')
    (folder/'notes.txt').write_text('mine')
    (folder/'tables'/'ours.png').write_bytes(b'drawn by hand')
    (folder/'letters').mkdir()
    (folder/'letters'/'review.txt').write_text('dear editor')


def theirs(folder):
    return [(folder/name).read_text() for name in ('model_card.md', 'notes.txt', 'tables/ours.png', 'letters/review.txt')]


THEIRS = ['Owner: us', 'mine', 'drawn by hand', 'dear editor']


def test_a_filled_in_card_and_foreign_files_survive_a_repeat_and_an_overwrite(small, tmp_path):
    identity, report = small
    report.write(tmp_path/'out', identity)
    empty = (tmp_path/'out'/'model_card.md').read_text()
    filled_in(tmp_path/'out')
    report.write(tmp_path/'out', identity)                           # the same report again, without --overwrite
    assert theirs(tmp_path/'out') == THEIRS and (tmp_path/'out'/'model_card.new.md').read_text() == empty
    report.write(tmp_path/'out', identity | {'seed': 1}, overwrite=True)
    assert theirs(tmp_path/'out') == THEIRS
    assert json.loads((tmp_path/'out'/'numbers.json').read_text())['identity']['seed'] == 1


def test_the_summary_says_what_was_kept(small, tmp_path):
    identity, report = small
    report.write(tmp_path/'out', identity)
    assert 'Kept' not in evaluation_report_page.report_summary(report, tmp_path/'out')
    filled_in(tmp_path/'out')
    report.write(tmp_path/'out', identity)
    assert 'Kept' in (said := evaluation_report_page.report_summary(report, tmp_path/'out')) and 'model_card.md' in said and 'notes.txt' in said


STEPS_OF_A_REPLACEMENT = ('read_manifest', 'write_json', 'files_in', 'survivors', 'carry_over', 'exchange', 'remove_replaced', 'os.replace', 'shutil.copy2', 'shutil.rmtree')


@pytest.mark.parametrize('step', STEPS_OF_A_REPLACEMENT)
@pytest.mark.parametrize('after', [False, True])
def test_an_interruption_at_any_step_loses_nothing(small, tmp_path, monkeypatch, step, after):
    "Ctrl-C at each call of each step, before or after it took effect: old or new report is there, and theirs in it, at once or after the next run."
    identity, report = small
    report = report.__class__.__new__(report.__class__)
    report.__dict__.update(small[1].__dict__, tables={name: small[1].tables[name] for name in ('model_card', 'data_card', 'discrimination')}, figures={})
    owner, name = (getattr(core_files, step.split('.')[0]), step.split('.')[1]) if '.' in step else (core_files, step)
    for call in range(1, 6):
        out = tmp_path/f'out{call}'
        report.write(out, identity)
        filled_in(out)
        calls, original = [], getattr(owner, name)
        def interrupted(*args, **kwargs):
            calls.append(args)
            if len(calls) != call: return original(*args, **kwargs)
            if after: original(*args, **kwargs)
            raise KeyboardInterrupt
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupted)
            try: report.write(out, identity)
            except KeyboardInterrupt: pass
        places = [place for place in tmp_path.iterdir() if place.name.startswith((f'out{call}', f'.out{call}.')) and place.is_dir()]
        assert any((place/'model_card.md').exists() and theirs(place) == THEIRS for place in places), (step, call, places)
        report.write(out, identity)                                  # and a further run puts everything in place
        assert theirs(out) == THEIRS and (out/'numbers.json').exists()
        if len(calls) < call: break
    assert calls


def test_a_failure_before_the_first_report_leaves_nothing(small, tmp_path, monkeypatch):
    identity, report = small
    def fails(*_): raise KeyboardInterrupt
    monkeypatch.setattr(evaluation_report_page, 'write_text', fails)
    with pytest.raises(KeyboardInterrupt): report.write(tmp_path/'out', identity)
    assert [p for p in tmp_path.iterdir() if not p.name.endswith('.lock')] == []


# The official list, published results, checklists

@pytest.fixture(scope='module')
def nih_scored():
    return join(simulated(nih_metadata()), nih_metadata())


def test_official_list(nih_scored):
    inside = is_official_test(nih_scored.table).to_numpy()
    official, others = np.flatnonzero(inside), np.flatnonzero(~inside)
    assert official_part(nih_scored.rows(official)) == ('whole', 25_596)
    assert official_part(nih_scored.rows(official[:100])) == ('part', 100)
    assert official_part(nih_scored.rows(others[:100])) == ('outside', 0)
    assert official_part(nih_scored.rows(range(2_000)))[0] == 'mixed'
    foreign = nih_scored.rows(official[:10])
    for change in (dict(images=np.array([f'hospital_{i}.png' for i in range(10)], dtype=object)), dict(patients=foreign.patients + 1),
                   dict(provenance=Provenance('St. Elsewhere', 'its archive'))):      # names, patients or a statement that are not NIH's
        assert official_part(replace(foreign, **change))[0] == 'foreign', change


@pytest.fixture(scope='module')
def nih_page(tmp_path_factory):
    "Reports of simulated predictions on NIH's metadata: a part of the official list, and a mixture."
    folder, nih = tmp_path_factory.mktemp('nih'), nih_metadata()
    inside = is_official_test(nih)
    patients = lambda rows, n: rows[rows.patient_id.isin(rows.patient_id.drop_duplicates().sample(n, random_state=0))].reset_index(drop=True)
    parts = {'part': patients(nih[inside], 150), 'mixed': patients(nih, 400), 'valid': patients(nih[~inside], 400)}
    for name, rows in parts.items(): simulated(rows).to_csv(folder/f'{name}.csv', index=False)
    studies = {name: make_study(folder/f'{name}.csv', nih, n_resamples=10, name='mine') for name in ('part', 'mixed')}
    studies['with_valid'] = make_study(folder/'part.csv', nih, valid=folder/'valid.csv', n_resamples=10, name='mine')
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluation_report_document, 'figure_bytes', lambda figure, ending, dpi=150: PIXEL)
        for name, study in studies.items(): write_report(study, folder/name, disable=True)
    return folder


@pytest.mark.parametrize('name, own_table', [('part', 'published_other'), ('with_valid', 'published_other'), ('mixed', 'published_other')])
def test_part_of_the_official_list_is_not_like_for_like(nih_page, name, own_table):
    page = Page((nih_page/name/'report.html').read_text(encoding='utf-8'))
    assert ('Not like for like' in page.text) == (name == 'mixed')
    tables = {t: pd.read_csv(nih_page/name/'tables'/f'{t}.csv') for t in ('published_official', 'published_other')}
    assert [t for t, frame in tables.items() if frame.model.str.contains('this report').any()] == [own_table]
    assert 'Synthetic images' not in page.text and 'text-mined' not in page.text.split('Limitations')[0][:200]
    assert ('Part of the official list: not the same images, compare with care' in page.text) == (name != 'mixed')
    assert 'Like for like with' not in page.text
    if name != 'mixed': assert 'the authors must' in page.text


def test_like_for_like_is_the_whole_official_list(nih_scored):
    from chestnb.evaluation.comparison import of_findings
    official = nih_scored.rows(is_official_test(nih_scored.table).to_numpy())
    for scored, whole in ((official, True), (official.rows(range(1, len(official))), False)):
        facts = split_facts(Study(scored))
        assert (facts['like_for_like'], facts['part_of_list']) == (whole, not whole)
        assert 'the authors must' in published_text(facts)
    facts = split_facts(Study(of_findings(official, FINDINGS[:5])))  # a mean over five findings is no mean over fourteen
    assert not facts['like_for_like'] and '5 findings' in published_text(facts)


def test_validation_on_official_patients_is_said_and_not_like_for_like(nih_page, tmp_path):
    nih = nih_metadata()
    official = nih[is_official_test(nih)]
    test = pd.read_csv(nih_page/'part.csv')
    tested = nih[nih.image.isin(test[IMAGE])].patient_id
    valid = official[~official.patient_id.isin(tested)].head(800)
    simulated(valid).to_csv(tmp_path/'valid.csv', index=False)
    report = write_report(make_study(nih_page/'part.csv', nih, valid=tmp_path/'valid.csv', n_resamples=5), tmp_path/'out', disable=True)
    assert not report.facts['like_for_like'] and '800 of the 800 validation images' in report.facts['valid_warning']


def test_published_results_have_a_source_and_a_protocol():
    frame = resource_table('published_results.csv')
    assert frame.source.notna().all() and set(frame.evidence) == {'primary', 'secondary'}
    official = frame[frame.protocol == 'official']
    assert official.mean_auroc.between(.74, .8351).all() and official.mean_auroc.max() == .835
    assert frame[frame.protocol == 'other'].differs_by.notna().all()
    assert frame[frame.source.str.contains('EVA-X|medical_mae')].differs_by.str.contains('test').all()
    each = resource_table('published_per_finding.csv').set_index('finding')
    assert tuple(each.index) == FINDINGS
    assert each['wang_official'].mean() == pytest.approx(.745, abs=.001) and each['chexnet_random'].mean() == pytest.approx(.841, abs=.001)


def test_checklists_are_complete_and_honest(full, bare):
    claim, tripod = (pd.read_csv(full/'tables'/f'checklist_{name}.csv', dtype=str) for name in ('claim', 'tripod'))
    assert claim.item.tolist() == [str(i) for i in range(1, 45)] and len(tripod) == 52
    assert {re.match(r'\d+', item)[0] for item in tripod.item} == {str(i) for i in range(1, 28)}
    for frame in (claim, tripod):
        assert (frame[frame.state == 'authors'].answer == TO_BE_FILLED).all()
        assert frame[frame.state == 'stated here'].answer.ne(TO_BE_FILLED).all()
    assert claim.set_index('item').loc['44', 'state'] == 'authors'        # nobody can guess who paid
    assert claim.set_index('item').loc['38', 'state'] == 'stated here'
    without = pd.read_csv(bare/'tables'/'checklist_claim.csv', dtype=str).set_index('item')
    assert without.loc['38', 'state'] == 'not in this run'


def test_cards_leave_to_the_authors_what_only_they_know(full):
    card = (full/'model_card.md').read_text(encoding='utf-8')
    assert card.count(TO_BE_FILLED) >= 5 and 'Not for clinical use' in card and 'Macro AUROC' in card
    assert 'no person' in (full/'data_card.md').read_text(encoding='utf-8')


# Small parts

@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.sampled_from(['score', 'share', 'fine', 'signed']))
def test_cell_text_rounds_to_the_nearest(value, kind):
    (shown, decimals, percent), = numbers_in(cell_text(kind, [value]))
    assert abs(shown - value*(100 if percent else 1)) <= .5*10**-decimals + 1e-8


def test_cell_text_never_invents_zero():
    assert cell_text('score', [float('nan')]) == '–' and cell_text('score', [None]) == '–' and cell_text('whole', [pd.NA]) == '–'
    assert cell_text('score', [.5, float('nan'), float('nan')]) == '0.500'
    assert cell_text('score', [1., 1., 1.]) == '1.000' # no width is no certainty
    assert cell_text('fine', [-.00042, -.00071, .00013]) == '-0.0004 [-0.0007, 0.0001]' # a small number keeps its sign
    assert cell_text('fine_signed', [.0005, -.0004, 0]) == '+0.0005 [-0.0004, 0.0000]' and cell_text('signed', [-.0003]) == '0.000'
    assert cell_text('ratio_signed', [.004]) == '0.00' and cell_text('share', [-.0001]) == '0.0%'
    assert cell_text('signed', [-.00004]) == '0.000' and cell_text('p', [.0001]) == '< 0.001'


def test_json_has_no_nan():
    assert json_value({'a': float('nan'), 'b': np.int64(3), 'c': [np.float64('inf'), pd.NA, True], 4: np.bool_(False)}) == {'a': None, 'b': 3, 'c': [None, None, True], '4': False}


# The command

def test_command(place, embedded):
    folder, *_ = place
    words = ['test.csv', '--data', embedded/'data.csv', '--valid', 'valid.csv', '--compare', 'other.csv', '--n_resamples', 20, '--name', 'mine', '--out', 'page']
    done = typed('chestnb_report', *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert 'Macro AUROC' in done.stdout and 'not a medical device' in done.stdout and 'Traceback' not in done.stderr
    html = (folder/'page'/'report.html').read_text(encoding='utf-8')
    assert str(folder) not in html and str(embedded) not in html, 'a path of this machine on the page'
    assert '--valid' in html and 'valid.csv' in html
    again = typed('chestnb_report', *[w if w != 20 else 21 for w in words], cwd=folder)
    assert again.returncode == 2 and '--overwrite' in again.stderr and 'Traceback' not in again.stderr


def test_command_refuses_in_one_sentence(place, embedded):
    folder, *_ = place
    done = typed('chestnb_report', 'test.csv', '--data', embedded, '--valid', 'test.csv', '--out', 'bad', cwd=folder)
    assert done.returncode == 2 and 'both the test and the validation' in done.stderr and 'Traceback' not in done.stderr
    assert not (folder/'bad').exists()


def test_runs_without_torch(place, embedded):
    folder, *_ = place
    code = ('import sys; sys.argv = ["chestnb_report"]; from chestnb.commands.evaluate import chestnb_report; '
            f'chestnb_report("test.csv", data={str(embedded/"data.csv")!r}, out="light", n_resamples=5); '
            'print([m for m in ("torch", "fastai", "timm", "torchxrayvision") if m in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith('[]')


def test_importing_the_module_is_light():
    code = 'import sys, chestnb.evaluation.report.page; print([m for m in ("sklearn", "matplotlib", "jinja2", "torch") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


# Real predictions

def test_published_predictions(shared_nih, tmp_path):
    nih, predictions = nih_metadata(), read_predictions(shared_nih/'chexnet_predictions.csv')
    inside = predictions[IMAGE].isin(nih.image[is_official_test(nih)])
    predictions[inside].to_csv(tmp_path/'inside.csv', index=False)
    predictions[~inside].to_csv(tmp_path/'outside.csv', index=False)
    study = make_study(tmp_path/'inside.csv', nih, valid=tmp_path/'outside.csv', n_resamples=20)
    report = write_report(study, tmp_path/'out', disable=True)
    assert len(study.scored) == 5_213 and report.facts['official_kind'] == 'part' and report.facts['part_of_list'] and not report.facts['like_for_like']
    assert f"{report.facts['macro']:.4f}" == '0.8182'
    assert float(report.facts['ece_after'].split()[0]) < float(report.facts['ece_before'].split()[0])
    assert Page((tmp_path/'out'/'report.html').read_text(encoding='utf-8')).open == []


def test_calibration_after_is_paired_and_says_what_got_worse(full):
    numbers = json.loads((full/'numbers.json').read_text(encoding='utf-8'))
    frame = pd.read_csv(full/'tables'/'calibration_after.csv').set_index('finding')
    change = frame.loc[list(FINDINGS), 'ece_difference'].dropna()
    assert np.allclose(change, (frame['after_ece'] - frame['ece']).reindex(change.index), atol=1e-12)
    said = numbers['facts']['change_text']
    assert f'fell for {(change < 0).sum()} of {len(change)} findings' in said
    assert all((f.replace('_', ' ') in said) == (change[f] > 0) for f in change.index)
    assert frame.loc['macro', ['slope', 'after_slope', 'calibration_intercept']].isna().all() and frame['after_ece_chance'].notna().any()


def test_share_of_negative_images_that_are_flagged(full, place):
    "Recomputed from the chosen thresholds on the page's own tables."
    folder, _, test, valid = place
    cut = pd.read_csv(full/'tables'/'thresholds.csv').set_index('finding')['threshold'].reindex(FINDINGS).to_numpy()
    text = json.loads((full/'numbers.json').read_text(encoding='utf-8'))['facts']['any_flag_text']
    for name, table in (('test', test), ('valid', valid)):
        scores = pd.read_csv(folder/f'{name}.csv').set_index(IMAGE).loc[table['image']].to_numpy()
        negative = ~table[list(FINDINGS)].any(axis=1).to_numpy()
        assert f'{(scores[negative] >= cut).any(axis=1).mean():.0%}' in text


def test_rare_findings_are_neither_best_nor_worst(place):
    folder, table, test, _ = place
    scored = make_study(folder/'test.csv', table).scored
    positive = test.groupby('patient_id')[list(FINDINGS)].any().sum()
    assert rankable(scored, FINDINGS) == ([f for f in FINDINGS if positive[f] >= 30] or list(FINDINGS))
    assert rankable(scored, ['Hernia']) == ['Hernia'] # where nothing else is there


def test_checklist_counts_what_this_run_lacks(full):
    claim = pd.read_csv(full/'tables'/'checklist_claim.csv', dtype=str).set_index('item')
    assert (claim.loc[['18', '31', '33'], 'state'] == 'not in this run').all() and 'None' in claim.loc['33', 'answer']
    assert f'{(claim["state"] == "not in this run").sum()} not in this run' in json.loads((full/'numbers.json').read_text(encoding='utf-8'))['facts']['checklist_text']
