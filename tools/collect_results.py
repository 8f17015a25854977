"""Copy what the results page shows from a run folder of chestnb_demo: python tools/collect_results.py runs/demo embedded

Only tables, figures and predictions are copied, never weights or images. What tools/localise_results.py left there stays.
"""
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP = ['comparison.csv', 'metrics.csv', 'summary.json', 'roc.png', 'train_val_loss.png', 'train_val_auc.png']
MODEL = ['history.csv', 'config.json', 'test_predictions.csv']


def collect(run, name):
    "Replace nbs/results/<name> by the results in folder `run`."
    target = ROOT/'nbs'/'results'/name
    for old in target.glob('*'):
        if old.is_dir(): shutil.rmtree(old)
        elif not old.name.startswith('localisation'): old.unlink()
    for file in [Path(n) for n in TOP] + [m.relative_to(run)/n for m in models(run) for n in MODEL]:
        (target/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run/file, target/file)
    shutil.copy(run/'without_no_finding'/'metrics.csv', target/'metrics_without_no_finding.csv')
    print(f'{target}: {sum(p.stat().st_size for p in target.rglob("*") if p.is_file())/1e3:.0f} kB')


def models(run):
    "The folders of trained models, the fusion first."
    return sorted((p.parent for p in run.glob('*/model.safetensors')), key=lambda p: (p.name != 'fusion', p.name))


if __name__ == '__main__': collect(Path(sys.argv[1]), sys.argv[2])
