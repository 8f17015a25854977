"""Where images come from: stated in a file, carried by tables, never guessed."""
import json

import numpy as np
import pandas as pd
import pytest

from chestnb.core.errors import UserError
from chestnb.data.nih import nih_metadata
from chestnb.data.phantom.cohort import cohort_table, make_cohort
from chestnb.data.provenance import (CHESTMNIST_PROVENANCE, NIH_PROVENANCE, PHANTOM_PROVENANCE, UNKNOWN_PROVENANCE, Provenance, provenance_of,
                                     provenance_sentence, read_provenance, stated_findings, write_provenance)


def test_silence_is_real(tmp_path):
    assert read_provenance(tmp_path) is UNKNOWN_PROVENANCE and not UNKNOWN_PROVENANCE.stated
    assert (UNKNOWN_PROVENANCE.kind, UNKNOWN_PROVENANCE.note) == ('real', 'real')
    assert provenance_of(pd.DataFrame()) is UNKNOWN_PROVENANCE


@pytest.mark.parametrize('provenance', [NIH_PROVENANCE, PHANTOM_PROVENANCE, CHESTMNIST_PROVENANCE, Provenance('St Elsewhere', licence='ask')])
def test_round_trip(tmp_path, provenance):
    write_provenance(tmp_path, provenance)
    assert read_provenance(tmp_path) == provenance and stated_findings(tmp_path) is None
    write_provenance(tmp_path, provenance, ('Fracture',))
    assert stated_findings(tmp_path) == ('Fracture',) and read_provenance(tmp_path) == provenance


@pytest.mark.parametrize('said, reason', [({'syntetic': True}, "Did you mean 'synthetic'"), ({'license': 'x'}, "Did you mean 'licence'"),
                                          ({'synthetic': 'false'}, 'true or false'), ({'synthetic': 1}, 'true or false'), ({'name': None}, 'a text in quotes')])
def test_a_misspelt_statement_is_not_silence(tmp_path, said, reason):
    (tmp_path/'dataset.json').write_text(json.dumps(said))
    with pytest.raises(UserError, match=reason): read_provenance(tmp_path)


@pytest.mark.parametrize('text', ['{', '[]', '"synthetic"'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path/'dataset.json').write_text(text)
    with pytest.raises(UserError, match='dataset.json: '): read_provenance(tmp_path)


@pytest.mark.parametrize('findings', [[], 'Mass', ['Mass', 'Mass'], [1], [' Mass']])
def test_bad_lists_of_findings(tmp_path, findings):
    (tmp_path/'dataset.json').write_text(json.dumps({'findings': findings}))
    with pytest.raises(UserError, match='list of different names'): stated_findings(tmp_path)


def test_other_keys_are_allowed(tmp_path):
    (tmp_path/'dataset.json').write_text(json.dumps({'name': 'mine', 'made_on': '2026-11-26', 'counts': {'images': 3}}))
    assert read_provenance(tmp_path) == Provenance('mine')


def test_tables_carry_it_through_choosing_rows():
    nih = nih_metadata()
    assert provenance_of(nih) == NIH_PROVENANCE and provenance_of(nih[nih.Mass].sample(5)) == NIH_PROVENANCE
    assert provenance_of(nih.iloc[:3].reset_index(drop=True).assign(age=1)).note == 'NIH ChestX-ray14'
    assert provenance_of(cohort_table(2)) == PHANTOM_PROVENANCE


def test_sentences():
    assert provenance_sentence(PHANTOM_PROVENANCE, 250, 80) == '250 synthetic images of 80 patients'
    assert provenance_sentence(NIH_PROVENANCE, 2050, 1) == '2,050 NIH ChestX-ray14 images of 1 patient'
    assert provenance_sentence(UNKNOWN_PROVENANCE, 1, None) == '1 real image of unknown patients'


def test_chestnb_phantom_states_that_it_is_synthetic(tmp_path):
    made = make_cohort(tmp_path/'cohort', n_patients=1, size=32, progress=False)
    assert json.loads((made/'dataset.json').read_text())['synthetic'] is True and read_provenance(made) == PHANTOM_PROVENANCE


def test_the_committed_set_states_it(embedded):
    assert read_provenance(embedded) == PHANTOM_PROVENANCE


def test_a_key_said_twice_is_refused(tmp_path):
    (tmp_path/'dataset.json').write_text('{"synthetic": true, "synthetic": false}')
    with pytest.raises(UserError, match='stands in it twice'): read_provenance(tmp_path)


def test_a_blank_name_is_no_name(tmp_path):
    (tmp_path/'dataset.json').write_text('{"name": " ", "licence": "ask"}')
    assert read_provenance(tmp_path) == Provenance(licence='ask') and provenance_sentence(read_provenance(tmp_path), 2, 1) == '2 real images of 1 patient'


@pytest.mark.parametrize('findings, named', [(['Fracture', 'fracture'], "'Fracture', 'fracture'"), (['Fracture', 'No Finding'], "'No Finding'"), (['Mass', '--'], "'--'")])
def test_findings_that_are_one_name_or_none_are_refused(tmp_path, findings, named):
    (tmp_path/'dataset.json').write_text(json.dumps({'findings': findings}))
    with pytest.raises(UserError, match=f"'findings' has {named}"): stated_findings(tmp_path)
