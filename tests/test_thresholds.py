"Thresholds by rule, their guards, application to test, decision curves."
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import confusion_matrix, f1_score, roc_curve

from chestnb.data.findings import FINDINGS, FIRST_SYNTHETIC_PATIENT, NO_FINDING
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.evaluation.predictions import IMAGE, predictions_frame, read_predictions
from chestnb.evaluation.operating import threshold_table
from chestnb.core.errors import UserError
from chestnb.evaluation.resampling import resample_weights
from chestnb.data.leakage import LeakageError
from chestnb.evaluation.thresholds import RULES, Thresholds, candidate_thresholds, choose_threshold, choose_thresholds
from chestnb.evaluation.decisions import decision_curve, default_probabilities, net_benefit, plot_decision_curve, useful_range

VALUES = {'youden': None, 'sensitivity': .8, 'specificity': .8, 'f1': None, 'cost': 3}


def made_up(n_patients=200, per_patient=2, seed=0, first=FIRST_SYNTHETIC_PATIENT, base=-1.5):
    "Synthetic patients and an honest model."
    random = np.random.default_rng(seed)
    ids = np.repeat(first + np.arange(n_patients), per_patient)
    log_odds = base + random.normal(size=(n_patients, 14)).repeat(per_patient, axis=0) + random.normal(size=(len(ids), 14))
    truth = random.random(log_odds.shape) < expit(log_odds)
    table = pd.DataFrame(truth, columns=FINDINGS).assign(patient_id=ids, **{NO_FINDING: ~truth.any(axis=1)})
    table['image'] = [f'{p:08d}_{i % per_patient:03d}.png' for i, p in enumerate(ids)]
    return table, predictions_frame(table['image'], expit(log_odds))


def other(seed=1, **options): return made_up(seed=seed, first=FIRST_SYNTHETIC_PATIENT + 10_000, **options)


def cases():
    "Targets with both classes, and scores, tied or not, often with exact 0 and 1."
    def draw(n, levels, seed):
        random = np.random.default_rng(seed)
        score = random.random(n) if levels is None else random.integers(0, levels + 1, n)/levels
        target = random.random(n) < .4
        target[:2] = [True, False]
        return target, score
    return st.builds(draw, st.integers(2, 50), st.sampled_from([2, 7, None]), st.integers(0, 10**6))


def rates(target, score, threshold):
    (tn, fp), (fn, tp) = confusion_matrix(target, score >= threshold, labels=[False, True])
    return tp, fp, fn, tn


# -- candidates

@given(cases())
@settings(max_examples=200, deadline=None)
def test_candidates_are_all_the_ways_to_mark(case):
    target, score = case
    thresholds, found, alarms = candidate_thresholds(target, score)
    assert (np.diff(thresholds) < 0).all() and thresholds[0] <= 1 and thresholds[-1] == 0
    assert len(thresholds) == len(np.unique(score)) + (score.max() < 1)
    for cut, f, a in zip(thresholds, found, alarms):
        tp, fp, *_ = rates(target, score, cut)
        assert (f, a) == (tp, fp)
    inner = thresholds[1:-1] if score.max() < 1 else thresholds[:-1]
    assert not np.isin(inner, score).any() # midway, never on a score


def test_neighbours_without_a_number_between():
    low = .5
    high = np.nextafter(low, 1)
    thresholds, found, _ = candidate_thresholds([0, 1], [low, high])
    assert (np.array([low, high]) >= thresholds[1]).tolist() == [False, True] and found.tolist() == [0, 1, 1]
    top = np.nextafter(1, 0)
    assert candidate_thresholds([0, 1], [.5, top])[0][0] == 1 # marks nobody


def test_midway_is_safe_against_rounding():
    table, predictions = made_up()
    chosen = choose_thresholds(predictions, table)
    rounded = predictions.copy()
    rounded[predictions.columns[1:]] = predictions[predictions.columns[1:]].astype(np.float32).astype(float)
    pd.testing.assert_frame_equal(chosen.apply(predictions, allow_chosen=True), chosen.apply(rounded, allow_chosen=True))


# -- rules, against brute force

@given(cases(), st.sampled_from([.1, .5, .8, .9, 1.]))
@settings(max_examples=200, deadline=None)
def test_rules_against_brute_force(case, share):
    target, score = case
    cuts = candidate_thresholds(target, score)[0]
    table = [rates(target, score, cut) for cut in cuts]
    tp, fp, fn, tn = np.array(table).T
    sensitivity, specificity = tp/(tp + fn), tn/(tn + fp)

    youden = choose_threshold(target, score, 'youden')
    false_rate, true_rate, at = roc_curve(target, score, drop_intermediate=False)
    assert youden['sensitivity'] + youden['specificity'] - 1 == pytest.approx((true_rate - false_rate).max(), abs=1e-12)
    best = sensitivity + specificity
    assert youden['threshold'] == cuts[np.flatnonzero(best > best.max() - 1e-9)[0]] # the highest of equals

    reached = choose_threshold(target, score, 'sensitivity', share)
    meets = sensitivity >= share - 1e-9
    assert reached['sensitivity'] >= share - 1e-9 and reached['specificity'] == pytest.approx(specificity[meets].max(), abs=1e-12)
    assert reached['threshold'] == cuts[meets].max()

    reached = choose_threshold(target, score, 'specificity', share)
    meets = specificity >= share - 1e-9
    if not meets.any(): assert reached is None
    else:
        assert reached['specificity'] >= share - 1e-9 and reached['sensitivity'] == pytest.approx(sensitivity[meets].max(), abs=1e-12)
        assert reached['threshold'] == cuts[meets & (sensitivity > sensitivity[meets].max() - 1e-9)].max()

    f1 = np.array([f1_score(target, score >= cut, zero_division=0) for cut in cuts])
    assert f1_score(target, score >= choose_threshold(target, score, 'f1')['threshold'], zero_division=0) == pytest.approx(f1.max(), abs=1e-12)

    for ratio in (.5, 1, 7):
        cost = fp + ratio*fn
        assert choose_threshold(target, score, 'cost', ratio)['threshold'] == cuts[np.flatnonzero(cost < cost.min() + 1e-9)[0]]


@pytest.mark.parametrize('rule', RULES)
def test_a_rising_curve_moves_no_choice(rule):
    table, predictions = made_up()
    target, score = table['Mass'].to_numpy(), predictions['prob_Mass'].to_numpy()
    before = choose_threshold(target, score, rule, VALUES[rule])
    after = choose_threshold(target, score**2, rule, VALUES[rule])
    assert {k: v for k, v in before.items() if k != 'threshold'} == {k: v for k, v in after.items() if k != 'threshold'}
    np.testing.assert_array_equal(score >= before['threshold'], score**2 >= after['threshold'])


def test_sensitivity_steps_with_rounding_traps():
    "0.7 of 10 positives are 7, though .7*10 is 7.000000000000001 in some orders of arithmetic."
    for n in (3, 7, 10, 30, 49, 100):
        score = np.r_[np.linspace(.5, .9, n), .1]
        target = np.r_[np.ones(n), 0]
        for k in range(1, n + 1):
            assert choose_threshold(target, score, 'sensitivity', k/n)['sensitivity'] == pytest.approx(k/n)
            assert choose_threshold(1 - target, 1 - score, 'specificity', k/n)['specificity'] >= k/n - 1e-9


def test_unreachable_specificity_is_none_and_named():
    assert choose_threshold([0, 1], [1., .5], 'specificity', .5) is None # the negative image has the score 1
    table, predictions = made_up()
    predictions.loc[~table['Mass'], 'prob_Mass'] = 1.
    chosen = choose_thresholds(predictions, table, 'specificity', .9)
    assert 'Mass' not in chosen.by_finding and 'specificity 0.9' in chosen.left_out['Mass']


@pytest.mark.parametrize('rule, value', [('best', None), ('youden', .9), ('f1', 1), ('sensitivity', None), ('sensitivity', 0), ('sensitivity', 1.1),
                                         ('specificity', 90), ('cost', None), ('cost', -1), ('cost', np.inf), ('cost', True), ('sensitivity', '0.9'), ('cost', np.nan)])
def test_bad_rules_are_refused(rule, value):
    table, predictions = made_up(20)
    with pytest.raises(UserError): choose_threshold([0, 1], [.1, .9], rule, value)
    with pytest.raises(UserError): choose_thresholds(predictions, table, rule, value)


def test_bad_arrays_are_refused():
    with pytest.raises(UserError, match='one kind is missing'): choose_threshold([1, 1], [.1, .9])
    with pytest.raises(UserError, match='NaN'): choose_threshold([0, 1], [.1, np.nan])
    with pytest.raises(UserError, match='sigmoid'): choose_threshold([0, 1], [-2, 3])


# -- choosing

@pytest.mark.parametrize('rule', RULES)
def test_choice_for_all_findings(rule):
    table, predictions = made_up()
    chosen = choose_thresholds(predictions.sample(frac=1, random_state=1), table, rule, VALUES[rule], part='valid')
    for finding in FINDINGS:
        single = choose_threshold(table[finding], predictions[f'prob_{finding}'], rule, VALUES[rule])
        assert chosen.by_finding[finding] == single['threshold']
        assert chosen.reached[finding] == {k: v for k, v in single.items() if k != 'threshold'} | {
            'positives': int(table[finding].sum()), 'positive_patients': table.loc[table[finding], 'patient_id'].nunique()}
    at_home = threshold_table(predictions, table, chosen.by_finding, n_resamples=0)
    frame = chosen.to_frame()
    np.testing.assert_allclose(at_home.loc[list(FINDINGS), 'sensitivity'].astype(float), frame['sensitivity'])
    np.testing.assert_allclose(at_home.loc[list(FINDINGS), 'specificity'].astype(float), frame['specificity'])
    assert chosen.chosen_on.patients == sorted(map(str, set(table['patient_id']))) and 'synthetic' in repr(chosen)


def test_choosing_on_test_raises():
    table, predictions = made_up(30)
    for bad in ('test', 'train', 'fold1'):
        with pytest.raises(LeakageError, match=repr(bad)): choose_thresholds(predictions, table, part=bad)
        with pytest.raises(LeakageError, match=repr(bad)): choose_thresholds(predictions, table.assign(part=bad))
    nih, nih_predictions = made_up(30, first=1)
    with pytest.raises(LeakageError, match='official test list'): choose_thresholds(nih_predictions, nih)
    assert choose_thresholds(nih_predictions, nih, allow_official_test=True).by_finding
    rest = nih[~is_official_test(nih)]
    assert choose_thresholds(nih_predictions[nih_predictions[IMAGE].isin(rest['image'])], rest).by_finding


def test_judging_on_the_chosen_patients_raises():
    table, predictions = made_up(30)
    chosen = choose_thresholds(predictions, table)
    for act in (lambda p, t: chosen.evaluate(p, t, 0), lambda p, t: chosen.apply(p, t), lambda p, t: chosen.apply(p)):
        with pytest.raises(LeakageError, match='may not be used to judge it'): act(predictions, table)
    renamed, frame = table.assign(image='x' + table['image']), predictions.assign(**{IMAGE: 'x' + predictions[IMAGE]})
    with pytest.raises(LeakageError, match='patients'): chosen.evaluate(frame, renamed, 0)
    with pytest.raises(LeakageError, match='patients'): chosen.apply(frame, renamed)
    one = pd.concat([other(n_patients=20)[0], renamed[:1]])
    with pytest.raises(LeakageError, match='1 patient '): chosen.evaluate(pd.concat([other(n_patients=20)[1], frame[:1]]), one, 0)
    assert len(chosen.evaluate(predictions, table, 0, allow_chosen=True)) and len(chosen.apply(predictions, table, allow_chosen=True))


# -- applying

def test_evaluation_is_the_threshold_table_unchanged():
    (table, predictions), (table2, predictions2) = made_up(), other()
    chosen = choose_thresholds(predictions, table, 'cost', 4)
    ours = chosen.evaluate(predictions2, table2, n_resamples=40, seed=2)
    theirs = threshold_table(predictions2, table2, chosen.by_finding, n_resamples=40, seed=2)
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs)
    for finding in FINDINGS:
        tp, fp, fn, tn = rates(table2[finding], predictions2[f'prob_{finding}'], chosen.by_finding[finding])
        assert ours.loc[finding, 'sensitivity'] == pytest.approx(tp/(tp + fn)) and ours.loc[finding, 'specificity'] == pytest.approx(tn/(tn + fp))
        assert ours.loc[finding, 'valid_sensitivity'] == chosen.reached[finding]['sensitivity']
    assert ours.attrs['rule'] == 'cost 4' and '400 synthetic images of 200 patients' in ours.attrs['chosen_on'] and ours.attrs['no_threshold'] == []


def test_findings_without_threshold_are_named_and_blank():
    (table, predictions), (table2, predictions2) = made_up(), other()
    chosen = choose_thresholds(predictions, table.assign(Hernia=False, Mass=True))
    assert chosen.left_out == {'Hernia': 'no positive image on validation', 'Mass': 'no negative image on validation'} and 'none for Mass, Hernia' in repr(chosen)
    assert chosen.to_frame().loc[['Hernia', 'Mass']].isna().all(axis=None)
    marks = chosen.apply(predictions2, table2)
    assert marks['Hernia'].isna().all() and marks['Edema'].notna().all() and list(marks) == [IMAGE, *FINDINGS]
    frame = chosen.evaluate(predictions2, table2, n_resamples=20)
    assert frame.attrs['no_threshold'] == ['Mass', 'Hernia']
    blank = frame.loc[['Hernia', 'Mass', 'macro', 'micro'], ['threshold', 'sensitivity', 'specificity', 'ppv', 'npv', 'f1', 'f1_low']]
    assert blank.isna().all(axis=None) and frame.loc['Hernia', ['positives', 'brier']].notna().all()
    assert frame.loc['Edema', ['sensitivity', 'sensitivity_low']].notna().all()


def test_marks_follow_the_convention():
    table, predictions = made_up()
    chosen = choose_thresholds(predictions, table)
    frame = predictions_frame(['new.png', 'newer.png'], np.tile([[chosen.by_finding['Edema']], [np.nextafter(chosen.by_finding['Edema'], 0)]], 14))
    assert chosen.apply(frame)['Edema'].tolist() == [True, False] # at the threshold: marked


# -- files

def test_round_trip_is_exact(tmp_path):
    (table, predictions), (table2, predictions2) = made_up(), other()
    chosen = choose_thresholds(predictions, table.assign(Hernia=False), 'sensitivity', .85)
    path = chosen.save(tmp_path/'sub'/'t.json')
    again = Thresholds.load(path)
    assert again.to_dict() == chosen.to_dict() and repr(again) == repr(chosen)
    pd.testing.assert_frame_equal(again.apply(predictions2), chosen.apply(predictions2))
    with pytest.raises(LeakageError): again.evaluate(predictions, table)
    assert [p.name for p in path.parent.iterdir()] == ['t.json']


def test_bad_files_are_explained(tmp_path):
    with pytest.raises(UserError, match='no such file'): Thresholds.load(tmp_path/'no.json')
    table, predictions = made_up(30)
    good = choose_thresholds(predictions, table).to_dict()
    for broken in ({}, [], good | {'format': 'x'}, {k: v for k, v in good.items() if k != 'rule'}, good | {'by_finding': {'Edma': .5}},
                   good | {'by_finding': {'Edema': 3}}, good | {'by_finding': {'Edema': 'x'}}, good | {'chosen_on': {}}):
        (tmp_path/'b.json').write_text(json.dumps(broken))
        with pytest.raises(UserError, match='no thresholds of the form'): Thresholds.load(tmp_path/'b.json')


# -- decision curves

@given(cases(), st.lists(st.floats(0, .99), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_net_benefit_against_the_formula(case, at):
    target, score = case
    expected = []
    for p in at:
        tp, fp, *_ = rates(target, score, p)
        expected.append(tp/len(target) - fp/len(target)*p/(1 - p))
    np.testing.assert_allclose(net_benefit(target, score, at), expected, atol=1e-12)


def test_net_benefit_marks_at_the_probability():
    assert net_benefit([1, 0], [.2, .1], .2)[0] == .5 and net_benefit([1, 0], [.2, .1], np.nextafter(.2, 1))[0] == 0


@pytest.mark.parametrize('at', [[1], [-.1], [np.nan], [], [[.1, .2]], [2]])
def test_impossible_threshold_probabilities(at):
    with pytest.raises(UserError, match='below 1'): net_benefit([0, 1], [.1, .9], at)


def test_decision_curve_against_loops():
    table, predictions = made_up(60, 3)
    at = [0, .1, .25, .5]
    curve = decision_curve(predictions, table, 'Edema', at, n_resamples=50, seed=4)
    target, score = table['Edema'].to_numpy(), predictions['prob_Edema'].to_numpy()
    np.testing.assert_allclose(curve['net_benefit'], net_benefit(target, score, at), atol=1e-12)
    np.testing.assert_allclose(curve['treat_all'], net_benefit(target, np.ones(len(target)), at), atol=1e-12)
    np.testing.assert_allclose(curve['gain'], curve['net_benefit'] - curve['treat_all'].clip(lower=0), atol=1e-12)
    assert (curve['treat_none'] == 0).all() and curve['marked'].tolist() == [(score >= p).mean() for p in at]
    number, weights = resample_weights(table['patient_id'], 50, 4)
    loop = []
    for w in weights.T:
        rows = np.repeat(np.arange(len(target)), w[number])
        model, everybody = net_benefit(target[rows], score[rows], at), net_benefit(target[rows], np.ones(len(rows)), at)
        loop.append([model, everybody, model - np.maximum(everybody, 0)])
    low, high = np.percentile(loop, [2.5, 97.5], axis=0)
    for i, name in enumerate(('net_benefit', 'treat_all', 'gain')):
        np.testing.assert_allclose(curve[f'{name}_low'], low[i], atol=1e-12)
        np.testing.assert_allclose(curve[f'{name}_high'], high[i], atol=1e-12)


def test_honest_model_is_useful_and_a_constant_is_not():
    table, predictions = made_up(600)
    curve = decision_curve(predictions, table, 'Edema', [.1, .2, .3], n_resamples=100)
    assert useful_range(curve) == (.1, .3)
    constant = predictions.assign(prob_Edema=table['Edema'].mean())
    assert useful_range(decision_curve(constant, table, 'Edema', [.1, .2, .3], n_resamples=100)) is None
    assert useful_range(decision_curve(predictions, table, 'Edema', [.1], n_resamples=0)) is None # nothing is sure without intervals


def test_useful_range_is_one_stretch():
    curve = pd.DataFrame({'gain_low': [1, -1, 1, 1, np.nan, 1.]}, index=[.0, .1, .2, .3, .4, .5])
    assert useful_range(curve) == (.2, .3)


def test_the_end_of_the_axis_is_no_limit_of_usefulness():
    table, predictions = made_up(600)
    said = lambda at: plot_decision_curve(predictions, table, 'Edema', threshold_probabilities=at, n_resamples=50).get_suptitle().replace('\xa0', ' ')
    title = said([.1, .2, .3])
    assert 'from 10.0% upwards' in title and 'drawn to 30.0%' in title and 'pointwise' in title
    constant = predictions.assign(prob_Edema=np.where(predictions['prob_Edema'] > .25, .25, predictions['prob_Edema'])) # marks nobody above
    title = plot_decision_curve(constant, table, 'Edema', threshold_probabilities=[.1, .2, .3], n_resamples=50).get_suptitle().replace('\xa0', ' ')
    assert 'from 10.0% to 20.0%' in title and 'upwards' not in title


def test_cost_rule_meets_the_threshold_probability():
    table, predictions = made_up(8000, 1)
    for ratio in (3, 9):
        assert choose_threshold(table['Edema'], predictions['prob_Edema'], 'cost', ratio)['threshold'] == pytest.approx(1/(1 + ratio), abs=.04)


def test_decision_figure_and_bad_finding():
    table, predictions = made_up(60)
    figure = plot_decision_curve({'one': predictions, 'two': predictions}, table, 'Pleural_Thickening', n_resamples=20)
    assert 'Pleural Thickening' in figure.get_suptitle() and 'synthetic' in figure.get_suptitle()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ['one', 'two', 'everybody marked', 'nobody marked']
    assert plot_decision_curve(predictions, table, 'Mass', title='A title', n_resamples=0).get_suptitle().startswith('A title')
    assert plot_decision_curve(predictions, table.assign(Hernia=False), 'Hernia', n_resamples=10) is not None
    with pytest.raises(UserError, match='Mas'): decision_curve(predictions, table, 'Mas')
    assert default_probabilities(0)[-1] == pytest.approx(.1) and default_probabilities(.5)[-1] == pytest.approx(.9)


# -- start-up, real data

def test_import_is_light():
    code = 'import sys, chestnb.evaluation.thresholds; print([m for m in ("torch", "sklearn", "matplotlib", "scipy.optimize", "jinja2") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_published_predictions(shared_nih):
    "Chosen outside the official test list, used inside."
    predictions, table = read_predictions(shared_nih/'chexnet_predictions.csv'), nih_metadata()
    table = table[table['image'].isin(predictions[IMAGE])]
    inside = is_official_test(table)
    take = lambda rows: (predictions[predictions[IMAGE].isin(table['image'][rows])], table[rows])
    with pytest.raises(LeakageError): choose_thresholds(*take(inside))
    chosen = choose_thresholds(*take(~inside), 'sensitivity', .8)
    assert len(chosen.by_finding) == 14 and len(chosen.chosen_on.patients) == 5597
    with pytest.raises(LeakageError): chosen.evaluate(predictions, table)
    frame = chosen.evaluate(*take(inside), n_resamples=50)
    assert frame.loc['Pneumothorax', 'specificity'] < frame.loc['Pneumothorax', 'valid_specificity'] - .1


def test_few_positive_patients_are_named():
    "A threshold that two patients decided is kept, and said to be so."
    table, predictions = made_up()
    ill = table.loc[table['Hernia'], 'patient_id'].unique()
    table['Hernia'] &= table['patient_id'].isin(ill[:2])
    chosen = choose_thresholds(predictions, table, part='valid')
    assert chosen.few() == {'Hernia': 2} and chosen.few(smallest=2) == {} and chosen.to_frame().loc['Hernia', 'positive_patients'] == 2
    assert Thresholds.from_dict(json.loads(json.dumps(chosen.to_dict()))).few() == {'Hernia': 2}
