"""What each decision of the two-view fusion buys: python benchmarks/ablation.py --data DIR [--out runs/ablation] [--seeds 0 1 2] [--rows NAME ...] [--small]

One row a lever, on one fixed patient split: mean validation macro AUROC over the seeds, their range, the paired difference to the row that the
lever was added to (interval over patients), minutes a model. Levers are chosen on validation patients only: test patients are not predicted here.
A run that was stopped goes on where it was; finished models are kept. --small takes 128 pixels, for a machine without hours to spare.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from chestnb.core.files import read_json, write_csv, write_json
from chestnb.core.text import interval_text
from chestnb.data.dataset import ChestDataset
from chestnb.data.parts import images_in
from chestnb.data.split import patient_split
from chestnb.evaluation.predictions import read_predictions, write_predictions
from chestnb.evaluation.scored import join
from chestnb.evaluation.seeds import compare_over_seeds, seed_verdict
from chestnb.model.config import MODELS
from chestnb.model.lungs import with_lungs
from chestnb.model.predict import predict
from chestnb.model.train import print_epoch, train_model

ONE = dict(branches=['tf_efficientnet_lite0'], views=['whole'], branch_heads=False, answer='fusion')
START = dict(average_weights=0., branch_loss=0., frozen_stages=0)

# name of the row: (the row that it is compared with, changes of the model, changes of the training, copies of an image in prediction)
ROWS = {
    'one network from scratch':            (None, ONE | dict(weights='none'), START, 1),
    'ImageNet weights':                    ('one network from scratch', dict(weights='auto'), {}, 1),
    'lungs instead of the whole':          ('ImageNet weights', dict(views=['lungs']), {}, 1),
    'two networks, the whole twice':       ('ImageNet weights', dict(branches=['tf_efficientnet_lite0']*2, views=['whole']), {}, 1),
    'two views':                           ('two networks, the whole twice', dict(views=['whole', 'lungs']), {}, 1),
    'heads and losses of branches':        ('two views', dict(branch_heads=True, answer='mean'), dict(branch_loss=1.), 1),
    'average of weights':                  ('heads and losses of branches', {}, dict(average_weights=.99), 1),
    'first stages frozen':                 ('average of weights', {}, dict(frozen_stages=2), 1),
    'twice the epochs':                    ('first stages frozen', {}, dict(epochs=lambda n: 2*n), 1),
    'mixup':                               ('first stages frozen', {}, dict(mixup=.4), 1),
    'label smoothing':                     ('first stages frozen', {}, dict(label_smoothing=.05), 1),
    'dropout':                             ('first stages frozen', dict(dropout=.3), {}, 1),
    'branch dropout':                      ('first stages frozen', dict(branch_dropout=.2), {}, 1),
    'half again as much augmentation':     ('first stages frozen', {}, dict(augment_strength=1.5), 1),
    'balanced sampler':                    ('first stages frozen', {}, dict(sampler='balanced'), 1),
    'asymmetric loss':                     ('first stages frozen', {}, dict(loss='asymmetric'), 1),
    'frozen warm-up of an epoch':          ('first stages frozen', {}, dict(frozen_epochs=1), 1),
    'attention for each finding':          ('first stages frozen', dict(attention='finding_query'), {}, 1),
    'test-time augmentation':              ('first stages frozen', {}, {}, 3),
}


def recipe(name, start):
    "The configuration of a row: its own changes on top of those of the row that it stands on."
    before, model, training, _ = ROWS[name]
    config = start if before is None else recipe(before, start)
    training = {key: change(getattr(config, key)) if callable(change) else change for key, change in training.items()}
    return replace(config, model=config.model | model, **training)


def trained_row(name):
    "The row whose models this row predicts with: itself, unless it only predicts in another way."
    before, model, training, passes = ROWS[name]
    return before if passes > 1 and not model and not training else name


def valid_predictions(dataset, split, folder, config, passes):
    "Train one model, or take it where it lies, and predict the validation patients."
    file = folder/f'valid_{passes}.csv'
    if file.is_file(): return read_predictions(file)
    started = time.perf_counter()
    model = train_model(dataset, split, folder, config, resume=True, on_epoch=print_epoch)
    if not (folder/'minutes.json').is_file(): write_json(folder/'minutes.json', {'minutes': (time.perf_counter() - started)/60})
    write_predictions(predict(model, dataset, images_in(split, 'valid'), tta=passes), file)
    return read_predictions(file)


def scored_seeds(name, dataset, split, start, out, seeds):
    "The validation scores of a row, one `Scored` a seed, and minutes a model."
    valid = dataset.table[dataset.table.image.isin(images_in(split, 'valid'))]
    folders = [out/trained_row(name).replace(' ', '_').replace(',', '')/f'seed{seed}' for seed in seeds]
    predictions = [valid_predictions(dataset, split, folder, replace(recipe(trained_row(name), start), seed=seed), ROWS[name][3])
                   for seed, folder in zip(seeds, folders)]
    minutes = [read_json(folder/'minutes.json', 'minutes of a training')['minutes'] for folder in folders]
    return [join(frame, valid, part='valid', name=name) for frame in predictions], sum(minutes)/len(minutes)


def table_row(name, done):
    "One line of the table: the row against the one that it stands on."
    scored, minutes = done[name]
    before = ROWS[name][0]
    pair = {before: done[before][0], name: scored} if before in done else {name: scored}
    row = compare_over_seeds(pair).loc[name]
    apart = interval_text(row.difference, row.difference_low, row.difference_high, sign='+') if len(pair) > 1 else ''
    return dict(lever=name, against=before if len(pair) > 1 else '', seeds=int(row.seeds), valid_auroc=row.auroc, lowest_seed=row.auroc_seed_min, highest_seed=row.auroc_seed_max,
                difference=row.difference, low=row.difference_low, high=row.difference_high, shown=apart,
                verdict=seed_verdict(row, before) if len(pair) > 1 else '', minutes=round(minutes, 1))


def ablation(dataset, out, names, seeds, small):
    "The table; written anew after each row."
    start = replace(MODELS['two_view'], **(dict(image_size=128, epochs=6) if small else {}))
    split, done, rows = patient_split(dataset.table, seed=0), {}, []
    for name in names:
        print(f'\n{name}', flush=True)
        done[name] = scored_seeds(name, dataset, split, start, out, seeds)
        rows.append(table_row(name, done))
        write_csv(out/'ablation.csv', pd.DataFrame(rows))
        print(pd.DataFrame(rows)[['lever', 'valid_auroc', 'shown', 'minutes']].round(3).to_string(index=False), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of a data set')
    parser.add_argument('--out', type=Path, default=Path('runs/ablation'), help='folder for the runs and the table')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--rows', nargs='+', default=list(ROWS), choices=list(ROWS), metavar='ROW', help=f'some of: {", ".join(ROWS)}')
    parser.add_argument('--small', action='store_true', help='128 pixels and 6 epochs instead of the default configuration')
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    ablation(with_lungs(ChestDataset(given.data), ['lungs']), given.out, given.rows, given.seeds, given.small)
