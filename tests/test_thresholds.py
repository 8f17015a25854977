"Thresholds by rule, their guards, application to test, decision curves."
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, roc_curve

from chestnb.core.errors import UserError
from chestnb.data.findings import FINDINGS
from chestnb.data.leakage import LeakageError
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.evaluation.decisions import decision_curve, default_probabilities, net_benefit, plot_decision_curve, useful_range
from chestnb.evaluation.operating import threshold_table
from chestnb.evaluation.predictions import read_predictions
from chestnb.evaluation.recognition import IMAGE
from chestnb.evaluation.resampling import resample_weights
from chestnb.evaluation.scored import join
from chestnb.evaluation.simulation import known_probabilities
from chestnb.evaluation.thresholds import RULES, Thresholds, candidate_thresholds, choose_threshold, choose_thresholds, rule_note

VALUES = {'youden': None, 'sensitivity': .8, 'specificity': .8, 'f1': None, 'cost': 3}


def made_up(n_patients=200, per_patient=2, seed=0, first=90_000_001, log_odds=-1.5, findings=FINDINGS):
    "Synthetic patients and an honest model."
    return known_probabilities(n_patients, per_patient, seed, first, log_odds, findings)


def other(seed=1, **options): return made_up(seed=seed, first=90_010_001, **options)


def with_labels(scored, **labels):
    "The same with other labels of some findings: an array, or one value for all images."
    targets = scored.targets.copy()
    for finding, values in labels.items(): targets[:, scored.position(finding)] = values
    return replace(scored, targets=targets)


def with_score(scored, finding, score):
    "The same with other scores of one finding."
    values = scored.scores.copy()
    values[:, scored.position(finding)] = score
    return scored.with_scores(values)


def renamed(scored):
    "Other images of the same patients."
    images = np.array([f'x{name}' for name in scored.images])
    return replace(scored, images=images, table=scored.table.assign(image=images))


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
@settings(max_examples=80, deadline=None)
def test_candidates_are_all_the_ways_to_flag(case):
    target, score = case
    thresholds, found_tp, found_fp = candidate_thresholds(target, score)
    assert (np.diff(thresholds) < 0).all() and thresholds[0] <= 1 and thresholds[-1] == 0
    assert len(thresholds) == len(np.unique(score)) + (score.max() < 1)
    for cut, *counted in zip(thresholds, found_tp, found_fp):
        tp, fp, *_ = rates(target, score, cut)
        assert counted == [tp, fp]
    inner = thresholds[1:-1] if score.max() < 1 else thresholds[:-1]
    assert not np.isin(inner, score).any() # midway, never on a score


def test_neighbours_without_a_number_between():
    low = .5
    high = np.nextafter(low, 1)
    thresholds, tp, _ = candidate_thresholds([0, 1], [low, high])
    assert (np.array([low, high]) >= thresholds[1]).tolist() == [False, True] and tp.tolist() == [0, 1, 1]
    top = np.nextafter(1, 0)
    assert candidate_thresholds([0, 1], [.5, top])[0][0] == 1 # flags nobody


def test_midway_is_safe_against_rounding():
    scored = made_up()
    chosen = choose_thresholds(scored)
    rounded = scored.with_scores(scored.scores.astype(np.float32).astype(float))
    pd.testing.assert_frame_equal(chosen.apply(scored, allow_fitted=True), chosen.apply(rounded, allow_fitted=True))


# -- rules, against brute force

@given(cases(), st.sampled_from([.1, .5, .8, .9, 1.]))
@settings(max_examples=60, deadline=None)
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
    target, score, _ = made_up().finding('Mass')
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
    scored = made_up()
    target, score, _ = scored.finding('Mass')
    chosen = choose_thresholds(with_score(scored, 'Mass', np.where(target, score, 1.)), 'specificity', .9)
    assert 'Mass' not in chosen.by_finding and 'specificity 0.9' in chosen.left_out['Mass']


@pytest.mark.parametrize('rule, value', [('best', None), ('youden', .9), ('f1', 1), ('sensitivity', None), ('sensitivity', 0), ('sensitivity', 1.1),
                                         ('specificity', 90), ('cost', None), ('cost', -1), ('cost', np.inf), ('cost', True), ('sensitivity', '0.9'), ('cost', np.nan)])
def test_bad_rules_are_refused(rule, value):
    with pytest.raises(UserError): choose_threshold([0, 1], [.1, .9], rule, value)
    with pytest.raises(UserError): choose_thresholds(made_up(20), rule, value)


def test_a_rule_is_told_with_every_digit():
    "Rounded to six digits, 0.9999999 would be told as 1."
    assert rule_note('sensitivity', .9999999) == 'sensitivity 0.9999999' and rule_note('cost', 1234567.5) == 'cost 1234567.5'
    assert 'sensitivity 0.9999999,' in repr(choose_thresholds(made_up(20), 'sensitivity', .9999999))


def test_bad_arrays_are_refused():
    with pytest.raises(UserError, match='one kind is missing'): choose_threshold([1, 1], [.1, .9])
    with pytest.raises(UserError, match='NaN'): choose_threshold([0, 1], [.1, np.nan])
    with pytest.raises(UserError, match='sigmoid'): choose_threshold([0, 1], [-2, 3])


# -- choosing

@pytest.mark.parametrize('rule', RULES)
def test_choice_for_all_findings(rule):
    scored = made_up()
    shuffled = join(scored.predictions.sample(frac=1, random_state=1), scored.table)
    chosen = choose_thresholds(shuffled, rule, VALUES[rule], part='valid')
    for finding in FINDINGS:
        target, score, patients = scored.finding(finding)
        single = choose_threshold(target, score, rule, VALUES[rule])
        assert chosen.by_finding[finding] == single['threshold']
        assert chosen.reached[finding] == {k: v for k, v in single.items() if k != 'threshold'} | {
            'positives': int(target.sum()), 'positive_patients': len(set(patients[target]))}
    at_home, frame = threshold_table(scored, chosen.by_finding), chosen.to_frame()
    for name in ('sensitivity', 'specificity'): np.testing.assert_allclose(at_home.loc[list(FINDINGS), name].astype(float), frame[name])
    assert chosen.fitted_on.patients == sorted(map(str, set(scored.patients))) and 'synthetic' in repr(chosen) and chosen.findings == FINDINGS


def test_choosing_on_test_raises():
    scored = made_up(30)
    for bad in ('test', 'train', 'fold1'):
        with pytest.raises(LeakageError, match=repr(bad)): choose_thresholds(scored, part=bad)
        with pytest.raises(LeakageError, match=repr(bad)): choose_thresholds(replace(scored, part=bad))
        with pytest.raises(LeakageError, match=repr(bad)): choose_thresholds(replace(scored, table=scored.table.assign(part=bad)))
    nih = made_up(30, first=1)
    with pytest.raises(LeakageError, match='official test list'): choose_thresholds(nih)
    assert choose_thresholds(nih, allow_official_test=True).by_finding
    assert choose_thresholds(nih.rows(~is_official_test(nih.table).to_numpy())).by_finding


def test_judging_on_the_chosen_patients_raises():
    scored, unseen = made_up(30), other(n_patients=20)
    chosen = choose_thresholds(scored)
    for act in (chosen.evaluate, chosen.apply, chosen.any_false_positive):
        for judged in (scored, renamed(scored)): # the images, and other images of the same patients
            with pytest.raises(LeakageError, match='may not be used to judge it'): act(judged)
    with pytest.raises(LeakageError, match='image'): chosen.apply(scored.predictions)
    one = join(pd.concat([unseen.predictions, renamed(scored).predictions[:1]]), pd.concat([unseen.table, renamed(scored).table[:1]]))
    with pytest.raises(LeakageError, match='1 patient '): chosen.evaluate(one)
    assert len(chosen.evaluate(scored, allow_fitted=True)) and len(chosen.apply(scored, allow_fitted=True))


# -- unknown labels, any findings

def test_unknown_labels_choose_nothing_and_are_counted():
    scored = made_up()
    half = np.arange(len(scored)) % 2 == 0
    chosen = choose_thresholds(with_labels(scored, Edema=np.where(half, np.nan, scored.targets[:, 9]), Hernia=np.nan))
    assert chosen.by_finding['Edema'] == choose_threshold(scored.targets[~half, 9], scored.scores[~half, 9])['threshold']
    assert chosen.unknown == {'Edema': 200, 'Hernia': 400} and chosen.left_out == {'Hernia': 'no positive image on validation'}
    test = other()
    frame = chosen.evaluate(with_labels(test, Edema=np.where(half, np.nan, test.targets[:, 9])))
    target, score = test.targets[~half, 9] == 1, test.scores[~half, 9]
    assert frame.loc['Edema', 'sensitivity'] == pytest.approx((score[target] >= chosen.by_finding['Edema']).mean())
    assert frame.loc['Edema', 'unknown'] == 200


def test_one_finding_is_enough():
    chosen = choose_thresholds(made_up(findings=('Fracture',)))
    frame = chosen.evaluate(other(findings=('Fracture',)))
    assert list(chosen.by_finding) == ['Fracture'] and frame.loc['macro', 'sensitivity'] == frame.loc['Fracture', 'sensitivity']
    assert Thresholds.from_dict(chosen.to_dict()) == chosen
    with pytest.raises(UserError, match='have Mass, which the thresholds was not fitted on'): chosen.evaluate(other(findings=('Mass',)))


def test_fewer_findings_than_thresholds_are_judged_alone():
    chosen = choose_thresholds(with_labels(made_up(), Hernia=0.))
    frame = chosen.evaluate(other(findings=('Edema', 'Mass')))
    assert frame.index[:2].tolist() == ['Edema', 'Mass'] and frame.attrs['no_threshold'] == [] and np.isfinite(frame.loc['macro', 'sensitivity'])


# -- applying

def test_evaluation_is_the_threshold_table_unchanged():
    scored, test = made_up(), other()
    chosen = choose_thresholds(scored, 'cost', 4)
    ours, theirs = chosen.evaluate(test), threshold_table(test, chosen.by_finding)
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs)
    for finding in FINDINGS:
        tp, fp, fn, tn = rates(*test.finding(finding)[:2], chosen.by_finding[finding])
        assert ours.loc[finding, 'sensitivity'] == pytest.approx(tp/(tp + fn)) and ours.loc[finding, 'specificity'] == pytest.approx(tn/(tn + fp))
        assert ours.loc[finding, 'valid_sensitivity'] == chosen.reached[finding]['sensitivity']
    assert ours.attrs['rule'] == 'cost 4' and '400 synthetic images of 200 patients' in ours.attrs['chosen_on'] and ours.attrs['no_threshold'] == []


def test_findings_without_threshold_are_named_and_blank():
    scored, test = made_up(), other()
    chosen = choose_thresholds(with_labels(scored, Hernia=0., Mass=1.))
    assert chosen.left_out == {'Hernia': 'no positive image on validation', 'Mass': 'no negative image on validation'} and 'none for Mass, Hernia' in repr(chosen)
    assert chosen.to_frame().loc[['Hernia', 'Mass']].isna().all(axis=None)
    flags = chosen.apply(test)
    assert flags['Hernia'].isna().all() and flags['Edema'].notna().all() and list(flags) == [IMAGE, *FINDINGS]
    frame = chosen.evaluate(test)
    assert frame.attrs['no_threshold'] == ['Mass', 'Hernia']
    blank = frame.loc[['Hernia', 'Mass', 'macro', 'micro'], ['threshold', 'sensitivity', 'specificity', 'ppv', 'npv', 'f1', 'f1_low']]
    assert blank.isna().all(axis=None) and frame.loc['Hernia', ['positives', 'brier']].notna().all()
    assert frame.loc['Edema', ['sensitivity', 'sensitivity_low']].notna().all()


def test_flags_follow_the_convention():
    chosen = choose_thresholds(made_up())
    cut = chosen.by_finding['Edema']
    frame = pd.DataFrame({IMAGE: ['new.png', 'newer.png'], 'prob_Edema': [cut, np.nextafter(cut, 0)]})
    assert chosen.apply(frame)['Edema'].tolist() == [True, False] # at the threshold: flagged


def test_any_false_positive_by_hand():
    valid = made_up(findings=('Mass', 'Edema'))
    chosen = choose_thresholds(valid)
    test = other(n_patients=2, findings=('Mass', 'Edema'))
    high, low = [chosen.by_finding[f] for f in test.findings], [0., 0.]
    test = replace(test, targets=np.array([[0, 0], [0, 0], [1, 0], [0, np.nan]]), scores=np.array([[high[0], 0], low, high, high]))
    assert chosen.any_false_positive(test) == .5 # of the two known to have nothing one is flagged
    assert np.isnan(chosen.any_false_positive(with_labels(test, Mass=1.)))


# -- files

def test_round_trip_is_exact(tmp_path):
    scored, test = made_up(), other()
    chosen = choose_thresholds(with_labels(scored, Hernia=0.), 'sensitivity', .85)
    path = chosen.save(tmp_path/'sub'/'t.json')
    again = Thresholds.load(path)
    assert again == chosen and again.to_dict() == chosen.to_dict() and repr(again) == repr(chosen)
    pd.testing.assert_frame_equal(again.apply(test), chosen.apply(test))
    with pytest.raises(LeakageError): again.evaluate(scored)
    assert [p.name for p in path.parent.iterdir()] == ['t.json'] and json.loads(path.read_text())['findings'] == list(FINDINGS)


def test_bad_files_are_explained(tmp_path):
    with pytest.raises(UserError, match='no such file'): Thresholds.load(tmp_path/'no.json')
    good = choose_thresholds(made_up(30)).to_dict()
    for broken in ({}, [], good | {'format': 'x'}, {k: v for k, v in good.items() if k != 'rule'}, good | {'by_finding': {'Edma': .5}},
                   good | {'by_finding': {'Edema': 3}}, good | {'by_finding': {'Edema': 'x'}}, good | {'fitted_on': {}}):
        (tmp_path/'b.json').write_text(json.dumps(broken))
        with pytest.raises(UserError, match='a thresholds file|no thresholds file of the form'): Thresholds.load(tmp_path/'b.json')


def test_a_file_of_version_1_is_read():
    old = {'format': 'chestnb thresholds 1', 'rule': 'f1', 'value': None, 'by_finding': {'Mass': .2}, 'left_out': {'Hernia': 'no positive image on validation'},
           'reached': {'Mass': {'sensitivity': .5, 'specificity': .9, 'marked': .1, 'positives': 8, 'positive_patients': 4}},
           'chosen_on': {'images': ['a.png'], 'patients': ['7'], 'synthetic': True}}
    chosen = Thresholds.from_dict(old)
    assert chosen.findings == ('Mass', 'Hernia') and chosen.reached['Mass']['flagged'] == .1 and chosen.few() == {'Mass': 4}
    assert repr(chosen) == '1 thresholds by the rule f1, chosen on 1 synthetic image of 1 patient; none for Hernia'


# -- decision curves

@given(cases(), st.lists(st.floats(0, .99), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_net_benefit_against_the_formula(case, at):
    target, score = case
    expected = []
    for p in at:
        tp, fp, *_ = rates(target, score, p)
        expected.append(tp/len(target) - fp/len(target)*p/(1 - p))
    np.testing.assert_allclose(net_benefit(target, score, at), expected, atol=1e-12)


def test_net_benefit_flags_at_the_probability():
    assert net_benefit([1, 0], [.2, .1], .2)[0] == .5 and net_benefit([1, 0], [.2, .1], np.nextafter(.2, 1))[0] == 0


@pytest.mark.parametrize('at', [[1], [-.1], [np.nan], [], [[.1, .2]], [2]])
def test_impossible_threshold_probabilities(at):
    with pytest.raises(UserError, match='below 1'): net_benefit([0, 1], [.1, .9], at)


def test_decision_curve_against_loops():
    scored = made_up(60, 3)
    at = [0, .1, .25, .5]
    curve = decision_curve(scored, 'Edema', at, n_resamples=50, seed=4)
    target, score, patients = scored.finding('Edema')
    np.testing.assert_allclose(curve['net_benefit'], net_benefit(target, score, at), atol=1e-12)
    np.testing.assert_allclose(curve['treat_all'], net_benefit(target, np.ones(len(target)), at), atol=1e-12)
    np.testing.assert_allclose(curve['gain'], curve['net_benefit'] - curve['treat_all'].clip(lower=0), atol=1e-12)
    assert (curve['treat_none'] == 0).all() and curve['flagged'].tolist() == [(score >= p).mean() for p in at]
    number, weights = resample_weights(patients, 50, 4)
    loop = []
    for w in weights.T:
        rows = np.repeat(np.arange(len(target)), w[number])
        model, everybody = net_benefit(target[rows], score[rows], at), net_benefit(target[rows], np.ones(len(rows)), at)
        loop.append([model, everybody, model - np.maximum(everybody, 0)])
    low, high = np.percentile(loop, [2.5, 97.5], axis=0)
    for i, name in enumerate(('net_benefit', 'treat_all', 'gain')):
        np.testing.assert_allclose(curve[f'{name}_low'], low[i], atol=1e-12)
        np.testing.assert_allclose(curve[f'{name}_high'], high[i], atol=1e-12)


def test_unknown_labels_are_left_out_of_a_decision_curve():
    scored = made_up(100)
    half = np.arange(len(scored)) % 2 == 0
    curve = decision_curve(with_labels(scored, Edema=np.where(half, np.nan, scored.targets[:, 9])), 'Edema', [.1, .3], n_resamples=20)
    np.testing.assert_allclose(curve['net_benefit'], net_benefit(scored.targets[~half, 9], scored.scores[~half, 9], [.1, .3]))
    assert curve.attrs['unknown'] == 100 and curve['gain_low'].notna().all()
    with pytest.raises(UserError, match='at least one image'): decision_curve(with_labels(scored, Edema=np.nan), 'Edema')


def test_honest_model_is_useful_and_a_constant_is_not():
    scored = made_up(600)
    assert useful_range(decision_curve(scored, 'Edema', [.1, .2, .3], n_resamples=100)) == (.1, .3)
    constant = with_score(scored, 'Edema', scored.targets[:, 9].mean())
    assert useful_range(decision_curve(constant, 'Edema', [.1, .2, .3], n_resamples=100)) is None
    assert useful_range(decision_curve(scored, 'Edema', [.1], n_resamples=0)) is None # nothing is sure without intervals


def test_useful_range_is_one_stretch():
    curve = pd.DataFrame({'gain_low': [1, -1, 1, 1, np.nan, 1.]}, index=[.0, .1, .2, .3, .4, .5])
    assert useful_range(curve) == (.2, .3)


def test_the_end_of_the_axis_is_no_limit_of_usefulness():
    scored = made_up(600)
    said = lambda given_: plot_decision_curve(given_, 'Edema', threshold_probabilities=[.1, .2, .3], n_resamples=50).get_suptitle().replace('\xa0', ' ')
    title = said(scored)
    assert 'from 10.0% upwards' in title and 'drawn to 30.0%' in title and 'pointwise' in title
    title = said(with_score(scored, 'Edema', scored.scores[:, 9].clip(max=.25))) # flags nobody above
    assert 'from 10.0% to 20.0%' in title and 'upwards' not in title


def test_cost_rule_meets_the_threshold_probability():
    scored = made_up(8000, 1)
    for ratio in (3, 9):
        assert choose_threshold(*scored.finding('Edema')[:2], 'cost', ratio)['threshold'] == pytest.approx(1/(1 + ratio), abs=.04)


def test_decision_figure_and_bad_finding():
    scored = made_up(60)
    figure = plot_decision_curve({'one': scored, 'two': scored}, 'Pleural_Thickening', n_resamples=20)
    assert 'Pleural Thickening' in figure.get_suptitle() and 'synthetic' in figure.get_suptitle()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ['one', 'two', 'everybody flagged', 'nobody flagged']
    assert plot_decision_curve(scored, 'Mass', title='A title', n_resamples=0).get_suptitle().startswith('A title')
    assert 'nowhere\xa0surely' in plot_decision_curve(with_labels(scored, Hernia=0.), 'Hernia', n_resamples=10).get_suptitle()
    with pytest.raises(UserError, match='Mas'): decision_curve(scored, 'Mas')
    assert default_probabilities(0)[-1] == pytest.approx(.1) and default_probabilities(.5)[-1] == pytest.approx(.9)


def test_more_models_than_colours_are_told_apart():
    scored = made_up(20)
    figure = plot_decision_curve({f'model {i}': scored for i in range(9)}, 'Mass', n_resamples=0)
    looks = {(line.get_color(), line.get_linestyle(), line._dash_pattern[1] and tuple(line._dash_pattern[1])) for line in figure.axes[0].lines[:9]}
    assert len(looks) == 9


# -- start-up, real data

def test_import_is_light():
    code = 'import sys, chestnb.evaluation.thresholds; print([m for m in ("torch", "sklearn", "matplotlib", "scipy.optimize", "jinja2") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_published_predictions(shared_nih):
    "Chosen outside the official test list, used inside."
    scored = join(read_predictions(shared_nih/'chexnet_predictions.csv'), nih_metadata().pipe(
        lambda table: table[table['image'].isin(pd.read_csv(shared_nih/'chexnet_predictions.csv')['Image Index'])]))
    inside = is_official_test(scored.table).to_numpy()
    with pytest.raises(LeakageError): choose_thresholds(scored.rows(inside))
    chosen = choose_thresholds(scored.rows(~inside), 'sensitivity', .8)
    assert len(chosen.by_finding) == 14 and len(chosen.fitted_on.patients) == 5597
    with pytest.raises(LeakageError): chosen.evaluate(scored)
    frame = chosen.evaluate(scored.rows(inside))
    assert frame.loc['Pneumothorax', 'specificity'] < frame.loc['Pneumothorax', 'valid_specificity'] - .1


def test_few_positive_patients_are_named():
    "A threshold that two patients decided is kept, and said to be so."
    scored = made_up()
    positive = np.unique(scored.patients[scored.targets[:, 13] == 1])[:2]
    chosen = choose_thresholds(with_labels(scored, Hernia=scored.targets[:, 13]*np.isin(scored.patients, positive)))
    assert chosen.few() == {'Hernia': 2} and chosen.few(smallest=2) == {} and chosen.to_frame().loc['Hernia', 'positive_patients'] == 2
    assert Thresholds.from_dict(json.loads(json.dumps(chosen.to_dict()))).few() == {'Hernia': 2}
