"""Several seeds of a model: interval over patients, range over seeds, and what may be said."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chestnb.core.errors import UserError
from chestnb.data.dataset import ChestDataset
from chestnb.evaluation.comparison import compare_models, model_influence
from chestnb.evaluation.metrics import auroc_per_finding
from chestnb.evaluation.scored import join
from chestnb.evaluation.seeds import compare_over_seeds, mean_over_seeds, seed_sentences, seed_verdict
from chestnb.evaluation.simulation import simulated_predictions


@pytest.fixture(scope='module')
def table(embedded): return ChestDataset(embedded).table


def seeds_of(table, start, n=3, **how): return [join(simulated_predictions(table, seed=start + i, **how), table, name=f'{start}') for i in range(n)]


def test_mean_and_range_are_those_of_the_seeds(table):
    runs = {'a': seeds_of(table, 0), 'b': seeds_of(table, 10, separation=1.2)}
    compared = compare_over_seeds(runs)
    macro = {name: [auroc_per_finding(s.targets, s.scores).mean() for s in each] for name, each in runs.items()}
    for name, each in macro.items():
        assert compared.loc[name, ['auroc', 'auroc_seed_min', 'auroc_seed_max']].tolist() == pytest.approx([np.mean(each), min(each), max(each)])
    apart = np.subtract(macro['b'], macro['a'])
    assert compared.loc['b', ['difference', 'difference_seed_min', 'difference_seed_max']].tolist() == pytest.approx([apart.mean(), apart.min(), apart.max()])


def test_one_seed_says_what_compare_models_says(table):
    runs = {'a': seeds_of(table, 0, 1), 'b': seeds_of(table, 10, 1)}
    for finding in ('macro', 'micro', 'Effusion'):
        ours, usual = compare_over_seeds(runs, finding), compare_models({name: each[0] for name, each in runs.items()}, finding)
        columns = ['auroc', 'auroc_low', 'auroc_high', 'difference', 'difference_low', 'difference_high']
        pd.testing.assert_frame_equal(ours[columns], usual[columns], check_exact=False, rtol=1e-9)


def test_the_mean_of_independent_seeds_has_a_narrower_interval_than_one(table):
    "Noise of the seeds' own averages out; what the patients share stays"
    wide, narrow = (compare_over_seeds({'a': seeds_of(table, 0, n)}).loc['a'] for n in (1, 8))
    assert narrow.auroc_high - narrow.auroc_low < .8*(wide.auroc_high - wide.auroc_low)
    same = compare_over_seeds({'a': seeds_of(table, 0, 1)*5}).loc['a']
    assert (same.auroc_low, same.auroc_high) == pytest.approx((wide.auroc_low, wide.auroc_high))


def test_images_in_another_order_change_nothing_and_other_images_are_refused(table):
    one, two = seeds_of(table, 0, 2)
    turned = two.rows(np.arange(len(two))[::-1])
    pd.testing.assert_frame_equal(compare_over_seeds({'a': [one, two]}), compare_over_seeds({'a': [one, turned]}))
    with pytest.raises(UserError, match='did not predict the same images'): compare_over_seeds({'a': [one, two.rows(np.arange(9))]})


@pytest.mark.parametrize('runs, said', [({}, 'No model'), ({'a': []}, 'without a seed')])
def test_nothing_to_compare_is_said(runs, said):
    with pytest.raises(UserError, match=said): compare_over_seeds(runs)


def test_fewer_seeds_of_one_model_are_refused(table):
    seeds = seeds_of(table, 0, 2)
    with pytest.raises(UserError, match='a: 2, b: 1'): compare_over_seeds({'a': seeds, 'b': seeds[:1]})
    with pytest.raises(UserError, match='expected one of macro'): compare_over_seeds({'a': seeds}, 'Measles')


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-.2, .2), min_size=4, max_size=4))
def test_better_needs_patients_and_every_seed(values):
    low, high, least, most = *sorted(values[:2]), *sorted(values[2:])
    said = seed_verdict(pd.Series(dict(difference_low=low, difference_high=high, difference_seed_min=least, difference_seed_max=most)), 'fusion')
    assert said.startswith('better') == (low > 0 and least > 0 and low*high > 0 and least*most > 0)
    assert said.startswith('worse') == (high < 0 and most < 0 and low*high > 0 and least*most > 0)
    assert said.startswith(('better than fusion', 'worse than fusion', 'not told apart from fusion: '))


def test_sentences_name_model_reference_and_both_movements(table):
    sentence, = seed_sentences(compare_over_seeds({'fusion': seeds_of(table, 0), 'alone': seeds_of(table, 0, separation=.2)}))
    assert sentence.startswith('alone: -') and 'over patients' in sentence and 'over 3 seeds' in sentence and 'worse than fusion in every seed' in sentence


def test_a_model_against_itself_differs_by_nothing(table):
    seeds = seeds_of(table, 0)
    row = compare_over_seeds({'fusion': seeds, 'twin': seeds}).loc['twin']
    assert row[[c for c in row.index if c.startswith('difference')]].tolist() == [0]*5
    assert 'not told apart' in seed_verdict(row, 'fusion')


def test_influences_are_averaged_patient_by_patient(table):
    each = [model_influence(s)['auroc'] for s in seeds_of(table, 0)]
    together = mean_over_seeds(each)
    assert np.allclose(together.cr3, sum(i.cr3 for i in each)/3) and together.patients.tolist() == each[0].patients.tolist()
