"""Images per second of a training step: our fastai Learner against the same model and batches in a plain PyTorch loop.

    python benchmarks/train_speed.py            # embedded synthetic data, 2 threads: small fusion at 128 px, two-view lite0 fusion at 160 px
    python benchmarks/train_speed.py --model small    # one of them

Both models store their weights with the channels last. Both run in this process, interleaved block by block; the figure is the median over the blocks. The plain loop does
what a step needs and no more: forward, loss, backward, fused AdamW, a scheduler step; for the two-view fusion also the loss of
each branch's own head, and the running average of the weights, with the stages frozen that
the recipe freezes. Target: a ratio of at least 0.95.
"""
import argparse, json, statistics, time, warnings
from dataclasses import replace
warnings.filterwarnings('ignore')
import torch
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.split import patient_split
from chestnb.model.runs import RunRecorder
from chestnb.model.config import MODELS, TrainConfig
from chestnb.model.learner import group_rates, make_learner, training_loss
from chestnb.model.fusion import FusionModel
from chestnb.model.optimizer import freeze_stages, fusion_parameter_groups, training_groups
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import ParamScheduler, combined_cos
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

CONFIGS = {'small': (TrainConfig(), 128, 32, 4), 'two_view': (replace(MODELS['two_view'], mixup=0., frozen_epochs=0), 160, 16, 2)} # settings, pixels, images a step, steps a block


def plain_loop(model, loss_function, optimizer, scheduler, batches, branch_loss, average):
    "What one would write without fastai"
    model.train()
    for x, y in batches:
        loss = loss_function(model(x), y)
        if branch_loss: loss = loss + branch_loss*torch.stack([loss_function(branch, y) for branch in model.branch_logits.unbind(1)]).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if average: average.update_parameters(model)

def learner_steps(learn, batches):
    "The same steps through the Learner and every callback that training has"
    learn.model.train()
    for i, batch in enumerate(batches): learn.one_batch(i, batch)

def measure(blocks=15, steps=4, batch_size=32, image_size=128, threads=2, dataset=None, config=None):
    "Images per second of each block of (plain loop, Learner)."
    torch.set_num_threads(threads)
    dataset = dataset or ChestDataset(embedded_dataset())
    config = replace(config or TrainConfig(), batch_size=batch_size, image_size=image_size, epochs=1000)
    config = replace(config, model=config.model | {'weights': 'none'}) # first weights don't change the speed
    split = patient_split(dataset.table)
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
    freeze_stages(model, config.frozen_stages)
    optimizer = torch.optim.AdamW(training_groups(fusion_parameter_groups(model), config.weight_decay), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[rate for rate in rates for _ in range(2)], total_steps=100_000)
    loss_function = training_loss(dataset, split, config.loss, config.unknown, config.label_smoothing).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average_weights), use_buffers=True) if config.average_weights else None
    branch_loss = config.branch_loss if config.model.get('branch_heads') else 0

    ways = {'plain PyTorch loop': lambda: plain_loop(model, loss_function, optimizer, scheduler, batches, branch_loss, average),
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

def rows_of(name, blocks, threads):
    "Rows of the benchmark table for one of `CONFIGS`."
    config, size, batch, steps = CONFIGS[name]
    speeds, device = measure(blocks, steps, batch, size, threads, config=config)
    paired = [a/b for a, b in zip(speeds['fastai Learner'], speeds['plain PyTorch loop'])]
    note = f'{name.replace("_", "-")} fusion, {size} px, batch {batch}, {device.type}, {threads} threads'
    for way, values in speeds.items(): yield [f'training step, {way}, images/s ({note})', 'peer' if 'plain' in way else 'as above', f'{statistics.median(values):.1f}']
    yield [f'training step, {name.replace("_", "-")} fusion: Learner / plain loop, median of block-wise ratios', 'at least 0.95', f'{statistics.median(paired):.3f}']


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', choices=list(CONFIGS), action='append', help='which fusion; may be given several times (default: both)')
    parser.add_argument('--blocks', type=int, default=15, help='timed blocks of each loop')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--json', action='store_true', help='print rows of the benchmark table as JSON')
    args = parser.parse_args()
    rows = [row for name in args.model or CONFIGS for row in rows_of(name, args.blocks, args.threads)]
    if args.json: print(json.dumps(rows))
    else: print('\n'.join(f'{measured:>8}  {figure}; target: {target}' for figure, target, measured in rows))


if __name__ == '__main__': main()
