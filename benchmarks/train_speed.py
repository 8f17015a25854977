"""Images per second of a training step: our fastai Learner against the same model and batches in a plain PyTorch loop.

    python benchmarks/train_speed.py            # embedded synthetic data, small fusion, 128 px, 2 threads

Both models store their weights with the channels last. Both run in this process, interleaved block by block; the figure is the median over the blocks. The plain loop does
what a step needs and no more: forward, loss, backward, fused AdamW, a scheduler step. Target: a ratio of at least 0.95.
"""
import argparse, json, statistics, time, warnings
warnings.filterwarnings('ignore')
import torch
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.split import patient_split
from chestnb.model.runs import RunRecorder
from chestnb.model.config import TrainConfig
from chestnb.model.learner import group_rates, make_learner, training_loss
from chestnb.model.fusion import FusionModel
from chestnb.model.optimizer import fusion_parameter_groups, training_groups
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import ParamScheduler, combined_cos

def plain_loop(model, loss_function, optimizer, scheduler, batches):
    "What one would write without fastai"
    model.train()
    for x, y in batches:
        loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

def learner_steps(learn, batches):
    "The same steps through the Learner and every callback that training has"
    learn.model.train()
    for i, batch in enumerate(batches): learn.one_batch(i, batch)

def measure(blocks=15, steps=4, batch_size=32, image_size=128, threads=2, dataset=None):
    torch.set_num_threads(threads)
    dataset = dataset or ChestDataset(embedded_dataset())
    split, config = patient_split(dataset.table), TrainConfig(batch_size=batch_size, image_size=image_size, epochs=1000)
    learn = make_learner(dataset, split, config).remove_cb(ProgressCallback)
    batches = []
    while len(batches) < steps: batches += [tuple(t.as_subclass(torch.Tensor).clone() for t in b) for b in learn.dls.train]
    batches = batches[:steps]

    rates = group_rates(config) # branches, new layers
    learn.create_opt()
    schedule = ParamScheduler({'lr': combined_cos(.25, *(torch.tensor(rates).numpy()*f for f in (1/25, 1, 1e-5))), 'mom': combined_cos(.25, .95, .85, .95)})
    recorder = RunRecorder('unused', config)
    learn.add_cbs([schedule, recorder])
    learn.n_epoch, learn.n_iter, learn.epoch, learn.dl = config.epochs, len(learn.dls.train), 0, batches
    for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)

    device = next(learn.model.parameters()).device
    model = FusionModel.from_config(learn.model.config).to(device, memory_format=torch.channels_last)
    model.load_state_dict(learn.model.state_dict())
    optimizer = torch.optim.AdamW(training_groups(fusion_parameter_groups(model), config.weight_decay), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[rate for rate in rates for _ in range(2)], total_steps=100_000)
    loss_function = training_loss(dataset, split, config.loss).to(device)

    ways = {'plain PyTorch loop': lambda: plain_loop(model, loss_function, optimizer, scheduler, batches),
            'fastai Learner': lambda: learner_steps(learn, batches)}
    speeds = {name: [] for name in ways}
    for block in range(blocks + 1): # the first block warms up
        for name in (list(ways) if block % 2 else reversed(list(ways))): # who goes first takes turns
            started = time.perf_counter()
            ways[name]()
            if device.type == 'cuda': torch.cuda.synchronize()
            if block: speeds[name].append(steps*batch_size/(time.perf_counter() - started))
            for metric in (*learn.metrics, learn.recorder.train_loss): metric.reset() # as an epoch's end would
    return speeds, device

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--blocks', type=int, default=15, help='timed blocks of each loop')
    parser.add_argument('--steps', type=int, default=4, help='training steps in a block')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--json', action='store_true', help='print rows of the benchmark table as JSON')
    args = parser.parse_args()
    speeds, device = measure(args.blocks, args.steps, threads=args.threads)
    median = {name: statistics.median(values) for name, values in speeds.items()}
    paired = [a/b for a, b in zip(speeds['fastai Learner'], speeds['plain PyTorch loop'])]
    ratio, note = statistics.median(paired), f'small fusion, 128 px, batch 32, {device.type}, {args.threads} threads'
    rows = [[f'training step, {name}, images/s ({note})', 'peer' if 'plain' in name else 'as above', f'{value:.1f}']
            for name, value in median.items()]
    rows.append(['training step: Learner / plain loop, median of block-wise ratios', 'at least 0.95', f'{ratio:.3f}'])
    if args.json: print(json.dumps(rows))
    else: print('\n'.join(f'{measured:>8}  {figure}; target: {target}' for figure, target, measured in rows))

if __name__ == '__main__': main()
