"""What is left of an X-ray without its lungs? Train on painted images, score the same test patients, write lungs.csv and hearts.csv.

    python tools/lung_results.py --data ../shared/nih/dataset --out nbs/results/nih_2050          (not run whole yet; on a busy machine the lungs alone took 8 minutes)
    python tools/lung_results.py --masks ../shared/nih/chexmask_50.csv --out nbs/results/chexmask (a few seconds)

The first line paints the versions of lesson 09 (masks: the folder's own, else those of the shipped segmenter; images without a usable mask
are left out), trains one network for each, and scores all of them on the same test patients. The second takes masks of lungs and heart in
CheXmask's format and NIH's labels, and writes each cardiothoracic ratio with label and view. No image or mask is written, only numbers.
"""
import argparse
import tempfile
from pathlib import Path

import pandas as pd

from chestnb.core.files import write_csv, write_json
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import STRUCTURES
from chestnb.data.heart import cardiothoracic_ratio
from chestnb.data.masks import decode_mask, read_segmentation
from chestnb.data.nih import nih_metadata
from chestnb.data.parts import images_in
from chestnb.data.regions import changed_dataset, VERSIONS
from chestnb.data.split import patient_split
from chestnb.evaluation.comparison import compare_models
from chestnb.evaluation.scored import join
from chestnb.model.cached import cached_training
from chestnb.model.config import SMALL_FUSION, TrainConfig
from chestnb.model.lungs import with_lungs
from chestnb.model.predict import predict

NETWORK = SMALL_FUSION | dict(branches=['tf_efficientnet_lite0'], weights='auto', reduced_channels=256, branch_stages=-1)
CONFIG = TrainConfig(model=NETWORK, image_size=112, epochs=4, learning_rate=1.5e-3, backbone_rate=.15)


def painted(data, out):
    "lungs.csv: macro AUROC and every finding's of each version, with the difference to whole images."
    dataset = with_lungs(ChestDataset(data), ['lungs'])
    dataset = dataset.subset([name for name in dataset.table.image if dataset.has_mask(name)])
    split = patient_split(dataset.table, seed=0)
    test, scores = dataset.table[dataset.table.image.isin(images_in(split, 'test'))].reset_index(drop=True), {}
    with tempfile.TemporaryDirectory() as place:
        for name, change in VERSIONS.items():
            version = changed_dataset(dataset, change, Path(place)/'version')
            model = cached_training(version, split, CONFIG, f'lung results {name}', progress=False)
            scores[name] = join(predict(model, version, list(test.image), progress=False), test, part='test', name=name)
    frames = {finding: compare_models(scores, finding) for finding in ('macro', *dataset.findings)}
    frame = pd.concat(frames, names=['finding']).drop(columns=['average_precision', 'ap_low', 'ap_high']).round(4).reset_index()
    write_csv(out/'lungs.csv', frame)
    view = {name: {view: round(float(compare_models({name: s.rows((test.view_position == view).to_numpy())}).auroc.iloc[0]), 4) for view in ('AP', 'PA')} for name, s in scores.items()}
    write_json(out/'lungs.json', {'command': f'python tools/lung_results.py --data DIR --out {out.as_posix()}', 'config': {**vars(CONFIG)},
                                  'images': len(dataset), 'test_images': len(test), 'test_patients': int(test.patient_id.nunique()), 'macro_by_view': view})
    print(frame[frame.finding == 'macro'].to_string())


def measured(masks, out):
    "hearts.csv: ratio, label and view of each image."
    frame, labels = read_segmentation(masks), nih_metadata().set_index('image')
    rows = []
    for _, row in frame.iterrows():
        left, right, heart = (decode_mask(row[name], row['height'], row['width']) for name in STRUCTURES)
        said = labels.loc[row['image']]
        rows.append(dict(view=said['view_position'], Cardiomegaly=bool(said['Cardiomegaly']), ratio=round(cardiothoracic_ratio(left | right, heart), 3)))
    write_csv(out/'hearts.csv', pd.DataFrame(rows).sort_values(['Cardiomegaly', 'view', 'ratio'], ignore_index=True))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data'), parser.add_argument('--masks'), parser.add_argument('--out', required=True, type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.masks: measured(asked.masks, asked.out)
    if asked.data: painted(asked.data, asked.out)
