"""AUROC and average precision of 14 findings under 1,000 resamples of the patients, against the plain loop over scikit-learn.

    python benchmarks/bootstrap_speed.py                # official NIH test patients, synthetic scores
    python benchmarks/bootstrap_speed.py --resamples 10000 --ours   # only ours: seconds and peak memory

The 25,596 images of 2,797 patients and their labels are those of NIH's official test list; the scores are SYNTHETIC (drawn at
random, with a habit for each patient). If the published predictions lie in ../shared/nih beside the repository, they are timed
too. The plain loop copies out each resample's images and calls `roc_auc_score` and `average_precision_score` once a finding; it
is timed on a few resamples, interleaved with ours, and scaled up. Ours also gives macro, micro and weighted mean, and is checked
against the loop to 1e-12. Target: at least 100 times as fast, memory under 1 GB.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from chestnb.data.findings import FINDINGS
from chestnb.data.nih import is_official_test, nih_metadata
from chestnb.evaluation.predictions import read_predictions
from chestnb.evaluation.resampling import patient_bootstrap, resample_weights
from chestnb.evaluation.scored import join

PUBLISHED = Path(__file__).resolve().parent.parent.parent/'shared'/'nih'/'chexnet_predictions.csv'


def official_test():
    "Real labels and patients of the official test list with synthetic scores"
    table = nih_metadata()
    table = table[is_official_test(table)]
    targets, patients = table[list(FINDINGS)].to_numpy(dtype=bool), table['patient_id'].to_numpy()
    random, number = np.random.default_rng(0), np.unique(patients, return_inverse=True)[1]
    habit = random.normal(size=(number.max() + 1, len(FINDINGS)))[number]
    return targets, 1/(1 + np.exp(3 - 1.5*targets - .7*habit - .7*random.normal(size=targets.shape))), patients


def published():
    "Published predictions for real images, with the labels of 2020"
    scored = join(read_predictions(PUBLISHED), nih_metadata(), partial=True)
    return scored.targets == 1, scored.scores, scored.patients


def plain_loop(targets, scores, number, columns):
    "What one would write without thinking of speed: (2, resamples, findings)"
    from sklearn.metrics import average_precision_score, roc_auc_score
    results = np.empty((2, len(columns), targets.shape[1]))
    for i, column in enumerate(columns):
        rows = np.arange(len(targets)).repeat(column[number])
        for f in range(targets.shape[1]):
            results[:, i, f] = [score(targets[rows, f], scores[rows, f]) for score in (roc_auc_score, average_precision_score)]
    return results


def compare(data, n_resamples, blocks):
    "Seconds for all resamples, ours and the loop's (scaled up), medians of interleaved blocks; and the largest difference"
    targets, scores, patients = data
    number, weights = resample_weights(patients, n_resamples)
    ours, loop, worst = [], [], 0
    for block in range(blocks):
        started = time.perf_counter()
        draws = patient_bootstrap(targets, scores, patients, n_resamples, disable=True)
        ours.append(time.perf_counter() - started)
        started, some = time.perf_counter(), slice(2*block, 2*block + 2)
        expected = plain_loop(targets, scores, number, weights.T[some])
        loop.append((time.perf_counter() - started)/2*n_resamples)
        for name, values in zip(('auroc', 'average_precision'), expected):
            worst = max(worst, np.abs(draws[name][some, :targets.shape[1]] - values).max())
    assert worst < 1e-12, f'differs from scikit-learn by {worst}'
    return statistics.median(ours), statistics.median(loop), worst


def alone(n_resamples):
    "Seconds and peak memory (GB) of ours in a process of its own"
    done = subprocess.run([sys.executable, __file__, '--ours', '--resamples', str(n_resamples)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(args):
    name = '25,596 NIH test images x 14, synthetic scores'
    sets = [(name, official_test)] + ([('22,433 NIH images x 14, published scores', published)] if PUBLISHED.is_file() else [])
    for name, data in sets:
        ours, loop, worst = compare(data(), args.resamples, args.blocks)
        yield [f'bootstrap, {name}: seconds for {args.resamples:,} patient resamples', 'as below', f'{ours:.2f}']
        yield [f'bootstrap, {name}: times faster than the scikit-learn loop ({loop:.0f} s)', 'at least 100', f'{loop/ours:.0f}']
        yield [f'bootstrap, {name}: largest difference from the loop', 'at most 1e-12', f'{worst:.0e}']
    for n in (args.resamples, 10*args.resamples):
        seconds, peak = alone(n)
        yield [f'bootstrap, {n:,} resamples in a process of its own: peak memory, GB ({seconds:.1f} s)', 'under 1', f'{peak:.2f}']


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--resamples', type=int, default=1000, help='resamples of the patients')
    parser.add_argument('--blocks', type=int, default=5, help='timed blocks')
    parser.add_argument('--ours', action='store_true', help='only ours, on the synthetic scores: print [seconds, peak GB]')
    parser.add_argument('--json', action='store_true', help='print rows of the benchmark table as JSON')
    args = parser.parse_args()
    if args.ours:
        data, started = official_test(), time.perf_counter()
        patient_bootstrap(*data, args.resamples)
        print(json.dumps([time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9]))
    elif args.json: print(json.dumps(list(rows(args))))
    else:
        for row in rows(args): print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__': main()
