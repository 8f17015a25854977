"""The benchmark table: python benchmarks/run.py [--skip-demo]

Prints a Markdown table of figure, target and what this machine measured. Figures of a noisy machine
vary: the speed scripts take medians of interleaved runs, and the table names the machine.
"""
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = Path(sys.executable).parent


def measured(*command, cwd=ROOT):
    "Output, wall seconds and peak memory (GB) of a command."
    started = time.perf_counter()
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode: sys.exit(f'{" ".join(map(str, command))} failed:\n{done.stderr[-3000:]}')
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss*1024/1e9
    return done.stdout, time.perf_counter() - started, peak


def demo_rows():
    "Time, memory and score of the demo on the embedded synthetic data set."
    with tempfile.TemporaryDirectory() as folder:
        _, seconds, peak = measured(BIN/'chestnb_demo', '--out', Path(folder)/'demo')
        lines = (Path(folder)/'demo'/'metrics.csv').read_text().splitlines()
    columns = lines[0].split(',')
    macro = dict(zip(columns, next(l for l in lines if l.startswith('macro')).split(',')))
    yield 'demo: minutes (3 models, embedded synthetic set)', 'at most 6', f'{seconds/60:.2f}'
    yield 'demo: macro AUROC of the fusion, synthetic test patients', 'at least 0.80', f"{float(macro['auroc']):.3f}"
    yield 'demo: peak memory, GB', 'under 4', f'{peak:.2f}'


def split_rows():
    "Seconds and worst label of an 80/20 split of the real metadata, ours and two peers."
    from chestnb.data.nih import nih_metadata
    table = nih_metadata()
    for name, target, seconds, worst in compare_splitters(table):
        yield f'split, {name}: seconds', target[0], f'{seconds:.2f}'
        yield f'split, {name}: worst label off by', target[1], f'{worst:.2%}'


def compare_splitters(table):
    "Time three splitters on one table."
    import numpy as np
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold
    from chestnb.data.findings import CLASSES
    from chestnb.data.split import patient_split
    labels = table[list(CLASSES)].to_numpy()
    sets = np.unique(labels, axis=0, return_inverse=True)[1].ravel()
    def ours(): return (patient_split(table, dict(train=.8, test=.2), seed=0).part == 'test').to_numpy()
    def shuffle(): return positions(next(GroupShuffleSplit(1, test_size=.2, random_state=0).split(labels, groups=table.patient_id))[1])
    def stratified(): return positions(next(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, sets, table.patient_id))[1])
    def positions(rows): return np.isin(np.arange(len(table)), rows)
    for name, split, target in [('chestnb', ours, ('under 2', 'within 1 %')), ('GroupShuffleSplit', shuffle, ('peer', 'peer')),
                                ('StratifiedGroupKFold', stratified, ('peer', 'peer'))]:
        started = time.perf_counter()
        test = split()
        seconds = time.perf_counter() - started
        yield name, target, seconds, abs(labels[test].sum(0)/labels.sum(0) - .2).max()/.2


def speed_rows(script):
    "Rows of a speed script: it prints a JSON list of [figure, target, measured] as its last line."
    return json.loads(measured(sys.executable, HERE/script, '--json')[0].splitlines()[-1])


def main():
    scripts = ('data_speed.py', 'train_speed.py', 'pack_speed.py', 'bootstrap_speed.py', 'use_speed.py')
    rows = [*split_rows(), *(row for script in scripts for row in speed_rows(script))]
    if '--skip-demo' not in sys.argv: rows += demo_rows()
    print(f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n')
    print('| figure | target | measured |\n|---|---|---|')
    for row in rows: print('| ' + ' | '.join(row) + ' |')


if __name__ == '__main__': main()
