"Prediction files as real users bring them (shared/cases), and others of the same kinds."
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chestnb.core.errors import UserError
from chestnb.data.findings import FINDINGS
from chestnb.data.tables import read_metadata
from chestnb.evaluation.predictions import read_predictions
from chestnb.evaluation.scored import join
from chestnb.evaluation.scores import score_table


@pytest.fixture(scope='module')
def cases(tmp_path_factory, root):
    "The files that make_cases.py makes."
    places = [Path(os.environ.get('CHESTNB_CASES', '')), root.parent/'shared'/'cases', root.parent.parent/'shared'/'cases']
    script = next((place/'make_cases.py' for place in places if (place/'make_cases.py').is_file()), None)
    if script is None: pytest.skip('shared/cases/make_cases.py is not here (looked beside the repository and in CHESTNB_CASES)')
    out = tmp_path_factory.mktemp('cases')
    subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(script.parent)!r}); import make_cases; '
                    f'from pathlib import Path; make_cases.predictions(Path({str(out)!r}))'], check=True)
    return out/'predictions'


@pytest.fixture(scope='module')
def truth(cases): return read_metadata(cases/'truth'/'data.csv')


@pytest.mark.parametrize('name', ['path_column', 'decimal_comma', 'fifteen_with_no_finding', 'five_findings'])
def test_each_form_is_read_and_scored_the_same(cases, truth, name):
    scored = join(read_predictions(cases/f'{name}.csv'), truth)
    plain = join(read_predictions(cases/'decimal_comma.csv'), truth)
    assert len(scored) == 240 and len(scored.findings) == (5 if name == 'five_findings' else 14)
    for finding in scored.findings:
        np.testing.assert_allclose(scored.finding(finding)[1], plain.finding(finding)[1], rtol=1e-12)
    assert .8 < score_table(scored).loc['macro', 'auroc'] < .9


def test_what_was_recognised_is_said(cases, truth):
    notes = lambda name: ' '.join(join(read_predictions(cases/f'{name}.csv'), truth).notes)
    assert 'path as Image Index' in notes('path_column') and 'reduced to file names' in notes('path_column')
    assert 'No Finding is no finding of its own' in notes('fifteen_with_no_finding')
    assert '9 findings left out, not predicted: Infiltration' in notes('five_findings')


@pytest.mark.parametrize('name, says', [('percent', 'these are percents.*divide by 100'), ('logits', 'these are logits.*sigmoid'),
    ('decisions', 'these are decisions at a threshold'), ('the_labels_themselves', 'equal the labels'),
    ('other_images', r'img0.png.*240 real images of 120 patients|None of the 240')])
def test_each_wrong_file_is_refused_with_its_true_cause(cases, truth, name, says):
    with pytest.raises(UserError, match=says): join(read_predictions(cases/f'{name}.csv'), truth)


def test_percents_are_not_told_to_apply_the_sigmoid(cases):
    with pytest.raises(UserError) as error: read_predictions(cases/'percent.csv')
    assert 'sigmoid' not in str(error.value)


# -- others of the same kinds, made here

NAMES = [f'{i:08}_000.png' for i in range(1, 31)]
SCORES = pd.DataFrame(np.random.default_rng(0).random((30, 14)), columns=FINDINGS)


def plain(): return SCORES.add_prefix('prob_').assign(**{'Image Index': NAMES})


def expect(frame): np.testing.assert_allclose(frame[[f'prob_{f}' for f in FINDINGS]], SCORES, rtol=1e-12)


@pytest.mark.parametrize('name, how', [('p.csv', dict(sep='\t')), ('p.tsv', dict(sep='\t', decimal=',')), ('p.CSV', dict(lineterminator='\r\n')), ('p.csv.gz', {}),
                                       ('p.csv.zip', dict(sep=';')), ('p.txt', dict(encoding='utf-8-sig')), ('p.csv.xz', dict(quoting=1))])
def test_separators_packing_and_byte_order_marks(tmp_path, name, how):
    plain().to_csv(tmp_path/name, index=False, **how)
    expect(read_predictions(tmp_path/name))


@pytest.mark.parametrize('column', ['image', 'Path', 'filename', 'image_id', 'file_name', 'dicom_id', 'ID', 'Image_Index', 'img'])
def test_names_of_the_image_column(tmp_path, column):
    plain().rename(columns={'Image Index': column}).to_csv(tmp_path/'p.csv', index=False)
    expect(read_predictions(tmp_path/'p.csv'))


def test_names_written_as_an_index_without_a_header(tmp_path):
    plain().set_index('Image Index').rename_axis(None).to_csv(tmp_path/'p.csv')
    frame = read_predictions(tmp_path/'p.csv')
    expect(frame)
    assert frame['Image Index'].tolist() == NAMES


@pytest.mark.parametrize('spell', [lambda f: f.lower(), lambda f: f.replace('_', ' '), lambda f: f'{f}_prob', lambda f: f'pred_{f.upper()}', lambda f: f'Score {f}',
                                   lambda f: {'Effusion': 'Pleural Effusion', 'Infiltration': 'Infiltrate', 'Edema': 'Oedema'}.get(f, f)])
def test_spellings_of_findings(tmp_path, spell):
    SCORES.rename(columns=spell).assign(path=NAMES).to_csv(tmp_path/'p.csv', index=False)
    expect(read_predictions(tmp_path/'p.csv'))


def test_findings_of_the_data_set_are_found_by_their_letters(tmp_path):
    findings = ('Lung Opacity', 'Pleural Effusion', 'Support Devices')
    pd.DataFrame({'Path': NAMES, 'lung_opacity': .1, 'Pleural Effusion': .2, 'SupportDevices': .3, 'No Finding': .4}).to_csv(tmp_path/'p.csv', index=False)
    frame = read_predictions(tmp_path/'p.csv', findings)
    assert frame.iloc[0, 1:].tolist() == [.1, .2, .3] and list(frame)[1:] == [f'prob_{f}' for f in findings]


def test_percent_signs_are_percents(tmp_path):
    plain().assign(prob_Mass='12 %').to_csv(tmp_path/'p.csv', index=False)
    with pytest.raises(UserError, match="'12 %' are percents"): read_predictions(tmp_path/'p.csv')


def test_rounding_beyond_one_is_a_probability(tmp_path):
    plain().assign(prob_Mass=1 + 1e-9, prob_Edema=-1e-9).to_csv(tmp_path/'p.csv', index=False)
    frame = read_predictions(tmp_path/'p.csv')
    assert (frame['prob_Mass'] == 1).all() and (frame['prob_Edema'] == 0).all()


def test_labels_beside_scores_are_not_taken_for_scores(tmp_path):
    plain().assign(**{f: 0 for f in FINDINGS}).to_csv(tmp_path/'p.csv', index=False)
    expect(read_predictions(tmp_path/'p.csv'))


@pytest.mark.parametrize('frame, says', [
    (plain().assign(Mass_prob=.5), 'Two columns for one finding: prob_Mass, Mass_prob'), (plain().drop(columns='Image Index'), 'No column with the name of the image'),
    (plain()[['Image Index']], 'No column of probabilities'), (plain().assign(prob_Mass=''), 'prob_Mass of 00000001_000.png.*not a number'),
    (pd.concat([plain(), plain()[:2]]), 'more than one row for 00000001_000.png')])
def test_what_is_ambiguous_or_missing_is_refused_by_file_and_cause(tmp_path, frame, says):
    frame.to_csv(tmp_path/'p.csv', index=False)
    with pytest.raises(UserError, match=f'p.csv: .*{says}'): read_predictions(tmp_path/'p.csv')


def test_a_parquet_file_is_read_or_its_remedy_named(tmp_path):
    (tmp_path/'p.parquet').write_bytes(b'PAR1')
    with pytest.raises(UserError, match='pyarrow|cannot be read'): read_predictions(tmp_path/'p.parquet')


@pytest.mark.parametrize('how', ['pipe', 'utf-16', 'sep line', 'zip', 'xz', 'quoted', 'no final line end'])
def test_whatever_a_label_table_may_be_predictions_may_be_too(tmp_path, how):
    frame = pd.DataFrame({'Image Index': ['a.png', 'b.png'], 'prob_Mass': [.25, .5], 'prob_Edema': [.125, 1.]})
    path = tmp_path/{'zip': 'p.csv.zip', 'xz': 'p.csv.xz'}.get(how, 'p.csv')
    if how in ('zip', 'xz'): frame.to_csv(path, index=False)
    else:
        text = frame.to_csv(index=False, sep={'pipe': '|', 'sep line': ';'}.get(how, ','), quoting=int(how == 'quoted'))
        path.write_text(('sep=;\n' if how == 'sep line' else '') + (text.rstrip('\n') if how.startswith('no') else text), encoding='utf-16' if how == 'utf-16' else 'utf-8')
    pd.testing.assert_frame_equal(read_predictions(path)[list(frame)].astype(frame.dtypes), frame, check_names=False)


def test_a_column_that_is_there_twice_is_refused_not_chosen(tmp_path):
    (tmp_path/'p.csv').write_text('Image Index,prob_Mass,prob_Mass\na.png,0.1,0.9\n')
    with pytest.raises(UserError, match='Two columns for one finding'): read_predictions(tmp_path/'p.csv')


@pytest.mark.parametrize('content, reason', [(b'PK\x03\x04xxxx', 'an Excel file'), (b'Image Index,prob_Mass\na.png,.1,.2\n', 'has 3 cells where the header names 2'), (b'', 'is empty')])
def test_files_that_are_no_table_are_named_for_what_they_are(tmp_path, content, reason):
    (tmp_path/'p.csv').write_bytes(content)
    with pytest.raises(UserError, match=reason): read_predictions(tmp_path/'p.csv')


@pytest.mark.parametrize('values, cause', [([-1, 1, -1], 'these are decisions'), ([-3.2, -.1, -.5], 'logarithms of probabilities, or logits'), ([-3.2, 2, -.5], 'these are logits'),
                                           ([12, 99, 50], 'these are percents')])
def test_the_cause_of_numbers_outside_0_to_1(tmp_path, values, cause):
    pd.DataFrame({'Image Index': ['a.png', 'b.png', 'c.png'], 'prob_Mass': values}).to_csv(tmp_path/'p.csv', index=False)
    with pytest.raises(UserError, match=cause): read_predictions(tmp_path/'p.csv')


@pytest.mark.parametrize('change', [lambda s: (s > .5).astype(float), lambda s: 1. - (s > .5)])
def test_one_column_of_decisions_among_probabilities_is_said(cases, truth, change):
    predictions = read_predictions(cases/'decimal_comma.csv')
    assert not any('is 0 or 1' in note for note in join(predictions, truth).notes)
    notes = join(predictions.assign(prob_Mass=change(predictions.prob_Mass)), truth).notes
    assert any(note.startswith('Every value of Mass is 0 or 1: these look like decisions') for note in notes)
