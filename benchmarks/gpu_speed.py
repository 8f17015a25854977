"""The reference configuration on one GPU, two views: images per second fed from packs, against the same step on one resident batch.

    python benchmarks/gpu_speed.py                 # one CUDA GPU, at most 8 minutes; without a GPU it says "not run"
    python benchmarks/gpu_speed.py --json          # the last line is a JSON list of [figure, target, measured]
    python benchmarks/gpu_speed.py --cpu           # a tiny smoke test of the script itself, not a measurement

Images are generated (smooth noise, no X-ray), written as PNG and packed at 224 pixels once a view: the whole image, and the
box of a view defined here, which stands for the lungs. DenseNet-121 sees the one and ResNet-50 the other, each with a head
and a loss of its own, from scratch (first weights don't change the speed), bfloat16, an average of the weights, augmentation,
channels last, the Learner and every callback that `train_model` uses. The limit is the same step with the same callbacks on
one batch that stays on the GPU: no reading, no copy, no augmentation. Blocks of both take turns; the ratio is the median over
pairs of blocks. Target: at least 0.90. An image counts once, whatever the number of its views. A last row gives the rate of
`predict`, which also reads from the packs. `--views whole` measures both branches on one view.
"""
import argparse, json, os, statistics, tempfile, time, warnings
from pathlib import Path

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
import torch
from PIL import Image
from chestnb.data.dataset import ChestDataset
from chestnb.data.findings import FINDINGS
from chestnb.data.loaders import image_reader
from chestnb.data.pack import pack_images
from chestnb.data.split import patient_split
from chestnb.data.squares import Crop
from chestnb.data.tables import write_metadata
from chestnb.data.views import define_view, view_crops
from chestnb.model.config import REFERENCE_FUSION, SMALL_FUSION, TrainConfig
from chestnb.model.learner import group_rates, make_learner
from chestnb.model.predict import predict
from chestnb.model.runs import RunRecorder
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import ParamScheduler, combined_cos


VIEWS = ('whole', 'box')
define_view('box', lambda dataset: Crop('box', {'box': [.15, .1, .85, .8]}, lambda image: (15, 10, 85, 80, 100, 100))) # as large as lungs are


def generated(folder, n, size, views=VIEWS, seed=0):
    "A data set of `n` generated images of n/2 patients, with a pack for each view."
    rng, rows = np.random.default_rng(seed), []
    (folder/'images').mkdir(parents=True)
    for i in range(n):
        image = Image.fromarray(rng.integers(0, 256, (size//8, size//8), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder/'images'/f'g{i:06}.png', compress_level=1)
        found = dict(zip(FINDINGS, rng.random(14) < .15))
        rows.append({'image': f'g{i:06}.png', 'patient_id': i//2 + 1, 'follow_up': i % 2, 'age': 50., 'sex': 'F', 'view_position': 'PA', 'width': size,
                     'height': size, 'pixel_spacing_x': .1, 'pixel_spacing_y': .1, **found, 'No Finding': not any(found.values())})
    write_metadata(pd.DataFrame(rows), folder/'data.csv')
    (folder/'dataset.json').write_text(json.dumps({'name': 'generated noise', 'synthetic': True}))
    dataset = ChestDataset(folder)
    for crop in view_crops(dataset, views): pack_images(dataset, size, workers=min(16, os.cpu_count()), progress=False, crop=crop)
    return dataset


def ready_learner(dataset, config):
    "The Learner in the middle of its first epoch, with the callbacks of `train_model`."
    learn = make_learner(dataset, patient_split(dataset.table, dict(train=.9, valid=.05, test=.05)), config)
    assert all(image_reader(learn.dls).packs), 'a view is not read from its pack'
    learn.remove_cb(ProgressCallback)
    learn.create_opt()
    peaks = np.array(group_rates(config))
    learn.add_cbs([ParamScheduler({'lr': combined_cos(.25, peaks/25, peaks, peaks/1e5), 'mom': combined_cos(.25, .95, .85, .95)}), RunRecorder('unused', config)])
    learn.n_epoch, learn.epoch, learn.dl, learn.n_iter = 1000, 0, learn.dls.train, len(learn.dls.train)
    for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)
    return learn


def endless(loader):
    while True: yield from loader


def rate(learn, batches, steps, device):
    "Images per second of the next steps."
    if device.type == 'cuda': torch.cuda.synchronize()
    started, images = time.perf_counter(), 0
    for i in range(steps):
        batch = next(batches)
        images += len(batch[0])
        learn.one_batch(i, batch)
    if device.type == 'cuda': torch.cuda.synchronize()
    return images/(time.perf_counter() - started)


def forget(learn): # what an epoch's end would have emptied
    for metric in (*learn.metrics, learn.recorder.train_loss): metric.reset()
    learn.recorder.settle()


def measure(dataset, config, blocks, steps):
    "Images per second of (pack, resident batch), a pair for each block."
    learn = ready_learner(dataset, config)
    device, stream = learn.dls.device, endless(learn.dls.train)
    resident = learn.dls.train.one_batch()
    def same():
        while True: yield resident
    sides, pairs = {'pack': stream, 'resident': same()}, []
    for batches in sides.values(): rate(learn, batches, steps, device) # warm up: cuDNN chooses, threads start
    for block in range(blocks):
        order = list(sides) if block % 2 else list(sides)[::-1]
        found = {side: (rate(learn, sides[side], steps, device), forget(learn))[0] for side in order}
        pairs.append((found['pack'], found['resident']))
    stream.close()
    return pairs, learn


def prediction_rate(dataset, learn, config):
    "Images per second of `predict` over all images of the pack."
    learn.model.info = {'image_size': config.image_size}
    names = dataset.table.image.tolist()
    predict(learn.model, dataset, names[:256], batch_size=config.batch_size, progress=False)
    started = time.perf_counter()
    predict(learn.model, dataset, names, batch_size=config.batch_size, progress=False)
    return len(names)/(time.perf_counter() - started)


def rows_of(arguments):
    cpu = arguments.cpu
    views = arguments.views.split(',')
    said = f"{len(views)} view{'s' if len(views) > 1 else ''}"
    if not cpu and not torch.cuda.is_available(): return [[f'reference configuration on a GPU, {said}, from packs / resident batch', 'at least 0.90', 'not run: no CUDA GPU here']]
    size, n, batch = (32, 96, 8) if cpu else (224, arguments.images, arguments.batch_size)
    model = (SMALL_FUSION if cpu else REFERENCE_FUSION) | {'weights': 'none', 'views': views, 'branch_heads': True, 'answer': 'mean'}
    config = TrainConfig(model=model, image_size=size, batch_size=batch, epochs=1000, average_weights=.999,
                         device='cpu' if cpu else 'cuda', compile=arguments.compile, num_workers=1 if cpu else None)
    with tempfile.TemporaryDirectory() as folder:
        dataset = generated(Path(folder), n, size, views)
        pairs, learn = measure(dataset, config, *((2, 2) if cpu else (arguments.blocks, arguments.steps)))
        predicted = prediction_rate(dataset, learn, config)
    ratio, (packed, resident) = statistics.median(a/b for a, b in pairs), map(statistics.median, zip(*pairs))
    where = f'smoke test on a CPU, {said}' if cpu else f'{torch.cuda.get_device_name()}, {size} px, {said}, batches of {batch}, bf16'
    return [[f'training from packs: images/s ({where})', '-', f'{packed:,.0f}'], ['one resident batch: images/s', '-', f'{resident:,.0f}'],
            ['training from packs / resident batch', 'none' if cpu else 'at least 0.90', f'{ratio:.2f}'],
            ['minutes an epoch of 86,524 images', '-', f'{86_524/packed/60:.1f}'], ['predict: images/s', '-', f'{predicted:,.0f}']]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=8192, help='generated images (50 kB of pack each and view)')
    parser.add_argument('--views', default=','.join(VIEWS), help='whole,box (one for each branch) or whole')
    parser.add_argument('--batch_size', type=int, default=64, help='images a step')
    parser.add_argument('--blocks', type=int, default=8, help='timed blocks of each side')
    parser.add_argument('--steps', type=int, default=60, help='steps in a block')
    parser.add_argument('--compile', action='store_true', help='torch.compile the model')
    parser.add_argument('--cpu', action='store_true', help='a tiny run of the script on the CPU, to test it')
    parser.add_argument('--json', action='store_true', help='end with a JSON list of rows')
    arguments = parser.parse_args()
    rows = rows_of(arguments)
    print('| figure | target | measured |\n|---|---|---|')
    for row in rows: print('| ' + ' | '.join(row) + ' |')
    if arguments.json: print(json.dumps(rows))


if __name__ == '__main__': main()
