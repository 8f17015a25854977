"""Copy what the results page shows from run folders of chestnb_demo: python tools/collect_results.py embedded runs/seed0 runs/seed1 runs/seed2

The first run is copied whole (tables, figures, history, configuration, predictions); of the others, the same training with other seeds, history and
predictions. Never weights or images. What other programs left there (localisation, ablation, lungs) stays.
"""
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP = ['comparison.csv', 'metrics.csv', 'summary.json', 'roc.png', 'train_val_loss.png', 'train_val_auc.png']
OTHERS = ('localisation', 'ablation', 'lungs') # what other programs left there
MODEL = ['history.csv', 'config.json', 'test_predictions.csv']


def models(run):
    "The folders of trained models, the fusion first."
    return sorted((p.parent for p in run.glob('*/model.safetensors')), key=lambda p: (p.name != 'fusion', p.name))


def settings(run):
    "What must be the same in all runs: the configuration of every model but its seed, and the data."
    configs = {model.name: json.loads((model/'config.json').read_text())['config'] for model in models(run)}
    for config in configs.values(): config.pop('seed')
    return configs, json.loads((run/'summary.json').read_text())['data_csv_sha256']


def refuse_other_settings(runs):
    "Stop where a run differs from the first in more than its seed."
    for run in runs[1:]:
        if settings(run) != settings(runs[0]): sys.exit(f'{run} differs from {runs[0]} in more than the seed')
    seeds = [json.loads((run/'fusion'/'config.json').read_text())['config']['seed'] for run in runs]
    if len(set(seeds)) < len(seeds): sys.exit(f'The runs have the seeds {seeds}; each must have its own')
    return seeds


def copy(run, files, target):
    "Copy files of a run, keeping their places in it."
    for file in files:
        (target/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run/file, target/file)


def collect(name, *runs):
    "Replace nbs/results/<name> by the results in the folders `runs`."
    target, seeds = ROOT/'nbs'/'results'/name, refuse_other_settings(runs)
    for old in target.glob('*'):
        if old.is_dir(): shutil.rmtree(old)
        elif not old.name.startswith(OTHERS): old.unlink()
    of_models = [m.relative_to(runs[0])/n for m in models(runs[0]) for n in MODEL]
    copy(runs[0], [Path(n) for n in TOP] + of_models, target)
    shutil.copy(runs[0]/'without_no_finding'/'metrics.csv', target/'metrics_without_no_finding.csv')
    for seed, run in zip(seeds[1:], runs[1:]): copy(run, [f for f in of_models if f.name != 'config.json'], target/f'seed{seed}')
    print(f'{target}: {sum(p.stat().st_size for p in target.rglob("*") if p.is_file())/1e3:.0f} kB, seeds {seeds}')


if __name__ == '__main__': collect(sys.argv[1], *map(Path, sys.argv[2:]))
