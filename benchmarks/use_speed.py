"""Images per second from files to answers, against the bare forward pass of the same networks.

    python benchmarks/use_speed.py                  # small fusion and two-view lite0 fusion at 224 px, 2 threads
    python benchmarks/use_speed.py --model small    # one of them

Synthetic X-rays of 512 pixels are drawn and saved as PNG. In this process, interleaved block by block: the bare
forward pass of all networks that an answer needs, on tensors that are ready (for two views also the lung segmenter,
which looks at each image four times), and `predict_images` on the files, which reads, cuts, calibrates and makes maps
too; both in PyTorch and in onnxruntime. Figures are medians over the blocks. `run.py` is a process of its own: the time
of all files less the time of one. The models are untrained (speed is the same), and look at each image once.
Target: `predict_images` at 0.8 of the bare pass.
"""
import argparse, json, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import numpy as np
import torch
from chestnb.data.findings import FINDINGS
from chestnb.data.phantom.anatomy import Anatomy
from chestnb.data.phantom.cohort import render
from chestnb.model.config import MODELS
from chestnb.model.fusion import FusionModel
from chestnb.model.lungs import LEAST_AREA, LEAST_QUALITY, load_segmenter, MOST_AREA
from chestnb.using.deployed import Deployed, DeployedLungs
from chestnb.using.export import export_model
from chestnb.using.exported import load_exported
from chestnb.using.predict import predict_images
from chestnb.using.ready import Ready
from PIL import Image

SIDE = 224


def spec_of(model, views):
    "A spec with nothing measured in it."
    segmenter = load_segmenter() if 'lungs' in views else None
    lungs = segmenter and dict(image_size=segmenter.image_size, margin=.1, least_quality=LEAST_QUALITY, least_area=LEAST_AREA, most_area=MOST_AREA, sha256=segmenter.info['sha256'])
    spec = dict(format='chestnb-model-1', name='speed', weights='0'*64, made='2026-01-01T00:00:00Z', chestnb='0', synthetic=True, note='Not for clinical use.', findings=list(FINDINGS),
                image_size=SIDE, views=list(views), tta=1, answer=model.config['answer'], map_share=[1., 1.], lungs=lungs, calibration={'curves': {}}, thresholds={'rule': 'youden', 'by_finding': {}},
                prevalence={}, scores={'part': 'test', 'findings': {}}, refusal={'scores': [], 'checks': {}}, data={}, run={})
    return spec, segmenter


def untrained(name):
    "A model of `MODELS` that can answer."
    torch.manual_seed(0)
    model = FusionModel(**(MODELS[name].model | {'weights': None})).eval().to(memory_format=torch.channels_last)
    spec, segmenter = spec_of(model, model.config['views'])
    return Ready(spec, Deployed(model).eval(), segmenter and DeployedLungs(segmenter).eval(), Path('.'), torch.device('cpu'))


def bare(engine, views, squares):
    "All networks of an answer, nothing else."
    if squares is not None: engine.segment(squares)
    engine.forward(views)


def per_second(act, images):
    started = time.perf_counter()
    act()
    return images/(time.perf_counter() - started)


def runner_rate(folder, files, threads):
    "Images per second of run.py once it has started."
    def seconds(some):
        started = time.perf_counter()
        subprocess.run([sys.executable, folder/'run.py', '--answer-refused', '--threads', str(threads), *some], capture_output=True, check=True)
        return time.perf_counter() - started
    return (len(files) - 1)/max(seconds(files) - seconds(files[:1]), 1e-9)


def measure(name, blocks, batch, threads):
    "Images per second: engine -> (bare, predict_images), and run.py."
    ready, rng = untrained(name), np.random.default_rng(0)
    views = rng.random((batch, len(ready.spec['views']), SIDE, SIDE), dtype=np.float32)
    squares = rng.random((batch, 1, ready.spec['lungs']['image_size'], ready.spec['lungs']['image_size']), dtype=np.float32) if ready.lungs else None
    with tempfile.TemporaryDirectory() as tmp:
        pictures, files = [Image.fromarray(render(Anatomy(seed=i), size=512, seed=i).image) for i in range(batch)], [Path(tmp)/f'{i}.png' for i in range(3*batch)]
        for i, file in enumerate(files): pictures[i % batch].save(file)
        folder = export_model(ready, Path(tmp)/'export')
        engines = {'PyTorch': ready, 'onnxruntime': load_exported(folder, threads)}
        found = {kind: [] for kind in engines}
        for block in range(blocks + 1): # the first one warms up
            for kind, engine in engines.items():
                ways = [lambda: bare(engine, views, squares), lambda: predict_images(engine, files[:batch], answer_refused=True, batch_size=batch, progress=False)]
                rates = [per_second(way, batch) for way in (ways if block % 2 else ways[::-1])] # who goes first takes turns
                if block: found[kind].append(rates if block % 2 else rates[::-1])
        return found, runner_rate(folder, files, threads)


def rows_of(name, blocks, batch, threads):
    "Rows of the benchmark table for one of `MODELS`."
    found, runner = measure(name, blocks, batch, threads)
    note = f'{name.replace("_", "-")} fusion, {SIDE} px, batch {batch}, {threads} threads'
    for kind, rates in found.items():
        pass_, whole = (statistics.median(column) for column in zip(*rates))
        yield [f'files to answers, {kind}: predict_images / bare forward pass, median of block-wise ratios ({note})', 'at least 0.80',
               f'{statistics.median(b/a for a, b in rates):.2f} ({whole:.1f} against {pass_:.1f} images/s)']
    yield [f'files to answers: run.py / bare forward pass in onnxruntime ({note})', 'at least 0.80', f'{runner/pass_:.2f} ({runner:.1f} images/s)']


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', choices=('small', 'two_view'), action='append', help='which fusion; may be given several times (default: both)')
    parser.add_argument('--blocks', type=int, default=7, help='timed blocks')
    parser.add_argument('--batch', type=int, default=8, help='images at a time')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--json', action='store_true', help='print rows of the benchmark table as JSON')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [row for name in args.model or ('small', 'two_view') for row in rows_of(name, args.blocks, args.batch, args.threads)]
    if args.json: print(json.dumps(rows))
    else: print('\n'.join(f'{measured:>40}  {figure}; target: {target}' for figure, target, measured in rows))


if __name__ == '__main__': main()
