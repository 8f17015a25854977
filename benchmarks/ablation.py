"""What each decision of the two-view fusion buys: python benchmarks/ablation.py --data DIR [--out runs/ablation] [--seeds 0 1 2] [--rows NAME ...] [--small]

One row a lever, on one fixed patient split: mean validation macro AUROC over the seeds, their range, the paired difference to the row that the
lever was added to (interval over patients), minutes a model. Levers are chosen on validation patients only: test patients are not predicted here.
A run that was stopped goes on where it was; finished models are kept. --small takes 112 pixels, for a machine without hours to spare.
Rows that begin on phantoms first train the recipe that they are compared with on a synthetic cohort, once for all seeds; its minutes are not counted.
"""
import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from chestnb.core.files import write_csv
from chestnb.core.text import interval_text
from chestnb.data.dataset import ChestDataset
from chestnb.data.parts import images_in
from chestnb.data.phantom.cohort import make_cohort
from chestnb.data.split import patient_split
from chestnb.evaluation.predictions import read_predictions, write_predictions
from chestnb.evaluation.scored import join
from chestnb.evaluation.seeds import compare_over_seeds, seed_verdict
from chestnb.model.config import MODELS
from chestnb.model.lungs import with_lungs
from chestnb.model.predict import predict
from chestnb.model.train import print_epoch, train_model

ONE = dict(branches=['tf_efficientnet_lite0'], branch_stages=[-1], views=['whole'], branch_heads=False, answer='fusion')
START = dict(average_weights=0., branch_loss=0., frozen_stages=0)
AT_REST = dict(epochs=8, augment_strength=1., tta=1, fusion_gradient=1.) # what `MODELS` took over from this table begins here as it was before
FUSION = 'first stages frozen' # what most levers are added to


@dataclass(frozen=True)
class Row:
    "One lever."
    before: str|None                           # The row that it is added to, and compared with
    model: dict = field(default_factory=dict)  # Changes of the model
    training: dict = field(default_factory=dict) # Changes of the training; a function changes what was there
    passes: int = 1                            # Copies of an image in prediction
    phantoms: bool = False                     # Begin where the recipe of `before` ended on phantoms
    last: bool = False                         # Of the same trainings, the last epoch instead of the best

    @property
    def trains(self): return bool(self.model or self.training or self.phantoms) # else it only looks in another way at the models of `before`


ROWS = {
    'one network from scratch':            Row(None, ONE | dict(weights='none'), START),
    'ImageNet weights':                    Row('one network from scratch', dict(weights='auto')),
    'phantoms first, no ImageNet':         Row('one network from scratch', phantoms=True),
    'lungs instead of the whole':          Row('ImageNet weights', dict(views=['lungs'])),
    'two networks, the whole twice':       Row('ImageNet weights', dict(branches=['tf_efficientnet_lite0']*2, branch_stages=[-1, -1], views=['whole'])),
    'two views':                           Row('two networks, the whole twice', dict(views=['whole', 'lungs'])),
    'heads and losses of branches':        Row('two views', dict(branch_heads=True, answer='mean'), dict(branch_loss=1.)),
    'average of weights':                  Row('heads and losses of branches', training=dict(average_weights=.99)),
    'first stages frozen':                 Row('average of weights', training=dict(frozen_stages=2)),
    'twice the epochs':                    Row(FUSION, training=dict(epochs=lambda n: 2*n)),
    'mixup':                               Row(FUSION, training=dict(mixup=.4)),
    'label smoothing':                     Row(FUSION, training=dict(label_smoothing=.05)),
    'dropout':                             Row(FUSION, dict(dropout=.3)),
    'branch dropout':                      Row(FUSION, dict(branch_dropout=.2)),
    'half again as much augmentation':     Row(FUSION, training=dict(augment_strength=1.5)),
    'twice the augmentation':              Row(FUSION, training=dict(augment_strength=2.)),
    'branches learn from their own losses only': Row('half again as much augmentation', training=dict(fusion_gradient=0.)),
    'balanced sampler':                    Row(FUSION, training=dict(sampler='balanced')),
    'asymmetric loss':                     Row(FUSION, training=dict(loss='asymmetric')),
    'frozen warm-up of an epoch':          Row(FUSION, training=dict(frozen_epochs=1)),
    'attention for each finding':          Row(FUSION, dict(attention='finding_query')),
    'attention for each finding, and the mean': Row(FUSION, dict(attention='query_and_mean')),
    'rates that fall by stage':            Row(FUSION, training=dict(frozen_stages=0, stage_decay=.5)),
    'no weight decay':                     Row(FUSION, training=dict(weight_decay=0.)),
    'four times the weight decay':         Row(FUSION, training=dict(weight_decay=lambda w: 4*w)),
    'phantoms after ImageNet':             Row(FUSION, phantoms=True),
    '160 pixels':                          Row(FUSION, training=dict(image_size=160)),
    '224 pixels':                          Row(FUSION, training=dict(image_size=224)),
    'the last epoch, not the best':        Row(FUSION, last=True),
    'test-time augmentation':              Row(FUSION, passes=3),
    'both augmentations':                  Row('half again as much augmentation', passes=3),
    'the whole recipe, three copies of an image': Row('branches learn from their own losses only', passes=3),
}


def recipe(name, start):
    "The configuration of a row: its own changes on top of those of the row that it stands on."
    row = ROWS[name]
    config = start if row.before is None else recipe(row.before, start)
    training = {key: change(getattr(config, key)) if callable(change) else change for key, change in row.training.items()}
    return replace(config, model=config.model | row.model, **training)


def trained_row(name): return name if ROWS[name].trains else ROWS[name].before # whose models a row predicts with
def folder_of(out, name): return out/trained_row(name).replace(' ', '_').replace(',', '')


def phantom_weights(folder, config, n_patients):
    "Train a recipe on phantoms, or take it where it lies: the names of the weights that it ended with."
    if not (cohort := folder.parent/f'phantoms_{n_patients}').exists(): make_cohort(cohort, n_patients)
    phantoms = with_lungs(ChestDataset(cohort), config.model['views'])
    train_model(phantoms, patient_split(phantoms.table, seed=0), folder/'on_phantoms', replace(config, seed=0), resume=True, on_epoch=print_epoch)
    return [f"run:{folder/'on_phantoms'}#{i}" for i in range(len(config.model['branches']))]


def valid_predictions(dataset, split, folder, config, passes):
    "Train one model, or take it where it lies, and predict the validation patients."
    file = folder/f'valid_{passes}.csv'
    if file.is_file(): return read_predictions(file)
    model = train_model(dataset, split, folder, config, resume=True, on_epoch=print_epoch)
    write_predictions(predict(model, dataset, images_in(split, 'valid'), tta=passes), file)
    return read_predictions(file)


def scored_seeds(name, dataset, split, start, out, seeds, n_phantoms):
    "The validation scores of a row, one `Scored` a seed, and minutes a model."
    valid, config = dataset.table[dataset.table.image.isin(images_in(split, 'valid'))], recipe(trained_row(name), start)
    folder, passes = folder_of(out, name), ROWS[name].passes
    folders = [folder/f'seed{seed}' for seed in seeds]
    if ROWS[name].phantoms and not all((each/f'valid_{passes}.csv').is_file() for each in folders):
        config = replace(config, model=config.model | dict(weights=phantom_weights(folder, config, n_phantoms)))
    predictions = [valid_predictions(dataset, split, each, replace(config, seed=seed), passes) for seed, each in zip(seeds, folders)]
    minutes = [pd.read_csv(each/'history.csv').seconds.sum()/60 for each in folders] # of the epochs, however often it was stopped
    return [join(frame, valid, part='valid', name=name) for frame in predictions], sum(minutes)/len(minutes)


def last_epoch_row(name, out, seeds, minutes):
    "The last epoch of every run beside its best one, as its history has them: no interval, for the choice was made on these very patients."
    curves = [pd.read_csv(folder_of(out, name)/f'seed{seed}'/'history.csv').valid_auroc for seed in seeds]
    last, lost = pd.Series([curve.iloc[-1] for curve in curves]), pd.Series([curve.iloc[-1] - curve.max() for curve in curves])
    return dict(lever=name, against=ROWS[name].before, seeds=len(seeds), valid_auroc=last.mean(), lowest_seed=last.min(), highest_seed=last.max(), difference=lost.mean(),
                shown=f'{lost.mean():+.3f}', verdict='the best epoch was chosen on these patients: its gain is at most this', minutes=round(minutes, 1))


def table_row(name, done):
    "One line of the table: the row against the one that it stands on."
    scored, minutes = done[name]
    before = ROWS[name].before
    pair = {before: done[before][0], name: scored} if before in done else {name: scored}
    row = compare_over_seeds(pair).loc[name]
    apart = interval_text(row.difference, row.difference_low, row.difference_high, sign='+') if len(pair) > 1 else ''
    return dict(lever=name, against=before if len(pair) > 1 else '', seeds=int(row.seeds), valid_auroc=row.auroc, lowest_seed=row.auroc_seed_min, highest_seed=row.auroc_seed_max,
                difference=row.difference, low=row.difference_low, high=row.difference_high, shown=apart,
                verdict=seed_verdict(row, before) if len(pair) > 1 else '', minutes=round(minutes, 1))


def ablation(dataset, out, names, seeds, start, n_phantoms):
    "The table; written anew after each row."
    split, done, rows = patient_split(dataset.table, seed=0), {}, []
    for name in names:
        print(f'\n{name}', flush=True)
        if ROWS[name].before and ROWS[name].training and recipe(name, start) == recipe(ROWS[name].before, start): print('changes nothing here: left out'); continue
        done[name] = scored_seeds(name, dataset, split, start, out, seeds, n_phantoms)
        rows.append(last_epoch_row(name, out, seeds, done[name][1]) if ROWS[name].last else table_row(name, done))
        write_csv(out/'ablation.csv', pd.DataFrame(rows))
        print(pd.DataFrame(rows)[['lever', 'valid_auroc', 'shown', 'minutes']].round(3).to_string(index=False), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of a data set')
    parser.add_argument('--out', type=Path, default=Path('runs/ablation'), help='folder for the runs and the table')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=list(ROWS), metavar='ROW', help=f'some of: {", ".join(ROWS)}')
    parser.add_argument('--small', action='store_true', help='the 112 pixels of two_view_small and 6 epochs instead of the default configuration')
    parser.add_argument('--phantoms', type=int, default=600, metavar='N', help='synthetic patients of the rows that begin on phantoms (about 3.6 images each)')
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    start = replace(MODELS['two_view'], **AT_REST | (dict(image_size=MODELS['two_view_small'].image_size, epochs=6) if given.small else {}))
    ablation(with_lungs(ChestDataset(given.data), ['lungs']), given.out, given.rows, given.seeds, start, given.phantoms)
