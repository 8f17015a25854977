"""Where do the small models look? Train them, score their maps against boxes, write localisation.csv.

    python tools/localise_results.py --out nbs/results/embedded                                       (about 8 minutes on two cores)
    python tools/localise_results.py --data ../shared/nih/dataset --epochs 24 --out nbs/results/nih_2050  (about 12 minutes)

Trained on the training patients of the split (NIH images: the official one), scored on the boxes of test patients only.
No image is written, only numbers. --runs keeps the trained models, and continues there if it is called again.
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from chestnb.data.dataset import ChestDataset, embedded_dataset, image_size
from chestnb.data.boxes import nih_boxes
from chestnb.core.errors import UserError
from chestnb.core.files import write_csv, write_json
from chestnb.model.config import SMALL_FUSION
from chestnb.evaluation.completeness import road_scores
from chestnb.evaluation.localisation import (baseline_scores, box_pairs, box_targets, centre_prior, localisation_differences, localisation_table, location_prior,
    on_grid, random_maps, random_scores, readable_localisation, score_maps, structure_table)
from chestnb.model.maps import pair_images, pair_logits, pair_maps
from chestnb.model.sanity import randomisation_check
from chestnb.data.leakage import refuse_trained_patients
from chestnb.data.parts import images_in
from chestnb.data.official import official_split
from chestnb.data.split import patient_split
from chestnb.model.config import TrainConfig
from chestnb.model.train import train_model
from chestnb.evaluation.scored import join
from chestnb.evaluation.scores import point_scores
from chestnb.model.predict import predict

MODELS = {'finding_query 8×8': SMALL_FUSION | dict(attention='finding_query', branch_stages=-2),
          'squeeze_excitation 8×8': SMALL_FUSION | dict(branch_stages=-2),
          'squeeze_excitation 4×4': SMALL_FUSION}
MAPS = {'attention': ('attention', 'fused'), 'evidence': ('evidence', 'fused'), 'Grad-CAM': ('grad_cam', 'fused'),
        'Grad-CAM++': ('grad_cam_pp', 'fused'), 'Grad-CAM branch 0': ('grad_cam', 0), 'Grad-CAM branch 1': ('grad_cam', 1),
        'Grad-CAM++ branch 0': ('grad_cam_pp', 0), 'Grad-CAM++ branch 1': ('grad_cam_pp', 1)}


def boxes_of(dataset):
    "The data set's own boxes, or NIH's, in pixels of the images on disk."
    if dataset.boxes is not None: return dataset.boxes
    boxes, frames = nih_boxes(), []
    boxes = boxes[boxes.image.isin(dataset.table.image)]
    if not len(boxes): raise SystemExit(f'{dataset.path} has no boxes, and NIH drew none on its images')
    for name, own in boxes.groupby('image', sort=False):
        rows, columns = image_size(dataset.image_path(name))
        frames.append(own.assign(x=own.x*columns/1024, width=own.width*columns/1024, y=own.y*rows/1024, height=own.height*rows/1024))
    return pd.concat(frames)


def road_table(model, dataset, pairs, targets, maps):
    "ROAD of a model's maps, of the location prior and of random maps; one pair for each patient and finding."
    some = pairs.drop_duplicates(['patient_id', 'finding']).index
    few, images = pairs.loc[some].reset_index(drop=True), pair_images(model, dataset, pairs.loc[some])
    maps = maps | {'location prior 8×8': on_grid(location_prior(pairs, targets), 8), 'random 8×8': random_maps(len(pairs), seed=3)}
    score = lambda changed: pair_logits(model, changed, few.finding)
    return localisation_table({name: road_scores(images, own[some], score) for name, own in maps.items()}, few)


def main(data, out, epochs, runs):
    "Train, map, score, write."
    dataset = ChestDataset(data)
    split = patient_split(dataset.table, seed=0) if dataset.is_synthetic else official_split(dataset.table)
    table = dataset.table[dataset.table.image.isin(images_in(split, 'test'))].reset_index(drop=True)
    boxes = boxes_of(dataset)
    pairs = box_pairs(boxes, table)
    used = boxes[boxes.image.isin(pairs.image)]
    print(refuse_trained_patients(used.image, dataset.table, split, 'boxed images'))
    targets, scores, maps, made = box_targets(pairs, used, dataset), {}, {}, {}
    for name, architecture in MODELS.items():
        model = train_model(dataset, split, Path(runs)/name.replace('×', 'x').replace(' ', '_'), TrainConfig(model=architecture, epochs=epochs), resume=True)
        scored = join(predict(model, dataset, list(table.image)), table)
        made[name] = {'epoch': model.info['epoch'], 'valid_macro_auroc': model.info['valid_auroc'],
                      'test_macro_auroc': float(point_scores(scored.targets, scored.scores)[0][-2]), 'maps_of_zeros': {}}
        whole = {}
        for kind, (method, layer) in MAPS.items():
            if method == 'attention' and architecture['attention'] != 'finding_query': continue
            own = pair_maps(model, dataset, pairs, method, layer)
            made[name]['maps_of_zeros'][kind] = int((own.max((1, 2)) == 0).sum())
            scores[f'{kind} ({name})'] = score_maps(own, targets)
            if layer == 'fused': whole[f'{kind} ({name})'] = own
            if dataset.segmentation is not None and layer == 'fused': maps[f'{kind} ({name})'] = own
        if name.startswith('finding_query'):
            checks = [randomisation_check(model, dataset, pairs, MAPS[kind][0]).assign(map=kind) for kind in ('attention', 'evidence', 'Grad-CAM', 'Grad-CAM++')]
            write_csv(out/'localisation_randomised.csv', pd.concat(checks).round(4))
            write_csv(out/'localisation_road.csv', road_table(model, dataset, pairs, targets, whole).round(4))
    scores['location prior 8×8'] = score_maps(on_grid(location_prior(pairs, targets), 8), targets)
    scores |= {'random 4×4': random_scores(targets, 4)} | baseline_scores(pairs, targets, 8)
    scores['random 8×8'] = scores.pop('random')
    result = localisation_table(scores, pairs)
    write_csv(out/'localisation.csv', result.round(4))
    differences = [localisation_differences(scores, pairs, reference).assign(minus=reference) for reference in ('random 8×8', 'centre', 'location prior')]
    write_csv(out/'localisation_differences.csv', pd.concat(differences).round(4))
    if maps: maps['centre'] = np.broadcast_to(centre_prior(128), targets.shape)
    if maps: write_csv(out/'localisation_structures.csv', structure_table(maps, pairs.image, dataset).round(4))
    write_json(out/'localisation.json', {'data': dataset.title_note, 'images_with_boxes': int(pairs.image.nunique()), 'patients': int(pairs.patient_id.nunique()),
        'pairs': len(pairs), 'epochs': epochs, 'image_size': 128, 'seed': 0, 'resamples': 1000, 'models': made,
        'region': 'bounding box of the connected part with the maximum above half of it'})
    with pd.option_context('display.width', 250, 'display.max_columns', 40): print(readable_localisation(result).T)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default=None, help='data set folder; the embedded synthetic one if left out')
    parser.add_argument('--out', type=Path, required=True, help='folder for localisation.csv and its companions')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--runs', default=None, help='keep the trained models here')
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder: main(given.data or embedded_dataset(), given.out, given.epochs, given.runs or folder)
    except UserError as error: raise SystemExit(str(error))
