"""How often 95 % intervals hold the truth, in SIMULATED studies: python benchmarks/coverage.py [--studies 100:600 400:300 2800:60] [--percentile]

Prints a share for each finding and for the macro mean: AUROC, average precision, and sensitivity, specificity and PPV at a threshold that
three quarters of the positives reach. With --percentile the old way (the middle of 200 patient resamples) is tried as well, which takes
most of the time. The table in nbs/api/evaluation/intervals.ipynb comes from here.
"""
import argparse

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from tqdm import tqdm

from chestnb.evaluation.intervals import mean_influence, operating_influence, score_influence, score_interval
from chestnb.evaluation.resampling import interval, patient_bootstrap, present_findings
from chestnb.evaluation.simulation import simulated_study, STUDY_AUROCS, STUDY_PREVALENCES, STUDY_THRESHOLDS, study_truth

SCORES = ('auroc', 'average_precision', 'sensitivity', 'specificity', 'ppv')


def truth():
    "What endlessly many patients would score, by finding."
    specificity = ndtr(np.sqrt(2)*ndtri(STUDY_AUROCS) - ndtri(.75))
    flagged = STUDY_PREVALENCES*.75 + (1 - STUDY_PREVALENCES)*(1 - specificity)
    return study_truth() | dict(specificity=specificity, ppv=STUDY_PREVALENCES*.75/flagged)


def inside(low, high, true, present):
    "Share of the findings, and whether the macro mean, whose interval holds the truth; NaN where there is none."
    true = np.r_[true, true[present].mean()]
    held = np.where(np.isnan(low[:15]), np.nan, (low[:15] <= true) & (true <= high[:15]))
    held[:14][~present] = np.nan
    return np.nanmean(held[:14]) if np.isfinite(held[:14]).any() else np.nan, held[14]


def one_study(random, n_patients, percentile, seed):
    "Rows (score, kind of interval, share of findings, macro) of one simulated study."
    targets, scores, number = simulated_study(random, n_patients)
    present, true = present_findings(targets), truth()
    influence = score_influence(targets, scores, number, n_patients) | operating_influence(targets, scores, STUDY_THRESHOLDS, number, n_patients)
    rows = [(name, 'influence', *inside(*score_interval(mean_influence(influence[name], targets, number)), true[name], present)) for name in SCORES]
    if not percentile: return rows
    resampled = patient_bootstrap(targets, scores, number, 200, seed=seed, disable=True)
    return rows + [(name, 'percentile', *inside(*interval(resampled[name])[:2], true[name], present)) for name in SCORES[:2]]


def coverage(n_patients, n_studies, percentile):
    "Coverage over many studies of one size."
    random = np.random.default_rng(n_patients)
    rows = [row for study in tqdm(range(n_studies), desc=f'{n_patients:,} patients') for row in one_study(random, n_patients, percentile, study)]
    frame = pd.DataFrame(rows, columns=['score', 'interval', 'each finding', 'macro mean']).groupby(['score', 'interval'], sort=False)
    return frame.mean().assign(studies=n_studies, macro_intervals=frame['macro mean'].count()/n_studies)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--studies', nargs='+', default=['100:600', '400:300', '2800:60'], help='patients:studies, several')
    parser.add_argument('--percentile', action='store_true', help='also the percentile bootstrap')
    given = parser.parse_args()
    sizes = [tuple(map(int, pair.split(':'))) for pair in given.studies]
    tables = {f'{patients:,} patients': coverage(patients, studies, given.percentile) for patients, studies in sizes}
    print(pd.concat(tables, axis=1).round(3).to_string())
