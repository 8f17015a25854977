# %% [markdown]
# # Exercises 04 · Do two networks see more than one?
#
# > Count a fusion, weigh its channels, cut the lungs out, and find out what three seeds and eighty patients can tell

# %%
import numpy as np
import torch
from chestnb.evaluation.metrics import auroc
from chestnb.model.fusion import FusionModel

# %% [markdown]
# ## 1. Count on paper
#
# A fusion has four kinds of parameters outside its backbones: pointwise convolutions without a bias, batch normalisation (two numbers a channel), attention (left out here), and a head with one weighted sum and one bias for each finding. Write the number of all of them as a function.

# %% [hint]
# A pointwise convolution from `c` to `reduced` channels is a table of `c × reduced` numbers. The head reads the *joined* map.

# %% [blank]
def parameters_outside(channels, reduced, findings):
    "channels: list with the channels of each backbone; reduced: channels of each branch after its pointwise convolution; findings: how many."
    return ...

# %% [solution]
def parameters_outside(channels, reduced, findings):
    "channels: list with the channels of each backbone; reduced: channels of each branch after its pointwise convolution; findings: how many."
    pointwise = sum(c*reduced + 2*reduced for c in channels)
    head = len(channels)*reduced*findings + findings
    return pointwise + head

# %% [wrong] the head reads one branch only
def parameters_outside(channels, reduced, findings): return sum(c*reduced + 2*reduced for c in channels) + reduced*findings + findings

# %% [wrong] no batch normalisation
def parameters_outside(channels, reduced, findings): return sum(c*reduced for c in channels) + len(channels)*reduced*findings + findings

# %% [wrong] no bias in the head
def parameters_outside(channels, reduced, findings): return sum(c*reduced + 2*reduced for c in channels) + len(channels)*reduced*findings

# %% [check]
def counted(model): return sum(p.numel() for part in (model.reduce, model.head) for p in part.parameters())
for branches, reduced, findings in ((['test_resnet', 'test_byobnet'], 64, 14), (['test_resnet'], 32, 1)):
    model = FusionModel(branches, reduced, attention='none', findings=[f'finding {i}' for i in range(findings)])
    channels = [branch.channels for branch in model.branches]
    answer, n = parameters_outside(channels, reduced, findings), len(branches)
    assert isinstance(answer, (int, np.integer)), 'the function should give a whole number; replace the dots'
    missing = counted(model) - answer
    assert missing != (n - 1)*reduced*findings or n == 1, 'the head reads the joined map: all branches side by side, not one of them'
    assert missing != 2*reduced*n, 'batch normalisation is missing: two numbers for each reduced channel of each branch'
    assert missing != findings, 'the bias of the head is missing: one number for each finding'
    assert missing == 0, f'a fusion of {branches} with {reduced} channels and {findings} findings has {counted(model):,} such parameters, your function says {answer:,}'

# %% [markdown]
# ## 2. Squeeze and excite
#
# Squeeze-and-excitation averages each channel over all places, lets a small network `gate` turn the averages of an image into one weight between 0 and 1 for each channel, and multiplies each channel by its weight. Write the forward pass.

# %%
torch.manual_seed(0)
gate = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 8), torch.nn.Sigmoid())  # (n, 8) -> (n, 8)
maps = torch.randn(2, 8, 5, 5) + 3*torch.randn(2, 8, 1, 1)  # images, channels, height, width

# %% [hint]
# The axes are 0 images, 1 channels, 2 and 3 places. `gate` wants `(images, channels)`. A result of that shape has to get two more axes, `[:, :, None, None]`, before it can be multiplied with the map.

# %% [blank]
def excite(x, gate):
    "x: (n, channels, h, w); gate: (n, channels) -> (n, channels) in 0..1. Gives (n, channels, h, w)."
    return ...

# %% [solution]
def excite(x, gate):
    "x: (n, channels, h, w); gate: (n, channels) -> (n, channels) in 0..1. Gives (n, channels, h, w)."
    weights = gate(x.mean((2, 3)))
    return x*weights[:, :, None, None]

# %% [wrong] adds the weights
def excite(x, gate): return x + gate(x.mean((2, 3)))[:, :, None, None]

# %% [wrong] one gate for the whole batch
def excite(x, gate): return x*gate(x.mean((0, 2, 3), keepdim=True)[:, :, 0, 0])[:, :, None, None]

# %% [wrong] gives the weights only
def excite(x, gate): return gate(x.mean((2, 3)))[:, :, None, None].expand_as(x)

# %% [check]
result = excite(maps, gate)
assert isinstance(result, torch.Tensor) and result.shape == maps.shape, f'the result should be a tensor of the shape {tuple(maps.shape)}; replace the dots, and give the map back, not the weights'
assert excite(torch.zeros(1, 8, 5, 5), gate).abs().max() == 0, 'a channel that is zero everywhere must stay zero: multiply the map by its weights, do not add them or return them alone'
assert torch.allclose(excite(maps[:1], gate), result[:1], atol=1e-6), 'an image got another result in company: average over the places (axes 2 and 3), not over the images'
order = torch.randperm(25)
def shuffled(m): return m.flatten(2)[:, :, order].view_as(m)
assert torch.allclose(excite(shuffled(maps), gate), shuffled(result), atol=1e-5), 'shuffling the places should shuffle the result and change nothing else'
assert torch.allclose(result, maps*gate(maps.mean((2, 3)))[:, :, None, None], atol=1e-5), 'the weights should come from the mean of each channel over all its places'

# %% [markdown]
# ## 3. Cut the lungs out
#
# The second view of the lesson is a square around both lungs, with a margin. Write it: from a mask (`True` where there is lung) to `(left, upper, right, lower)` in pixels. Take the smallest rectangle around the lungs; let `side` be its longer side, times 1 + 2·`margin`; give the square of that side with the same centre. `right` and `lower` are exclusive, as in slices: lungs in the columns 10 to 19 have `left` 10 and `right` 20. Leave the numbers as they come, without rounding, and let the square leave the picture if it must.

# %%
mask = np.zeros((100, 120), bool)  # height, width
mask[30:70, 20:45] = True          # the lung on the left of the picture
mask[35:72, 60:90] = True          # the other one, a little lower

# %% [hint]
# `np.flatnonzero(mask.any(axis=0))` gives the columns that hold lung; `axis=1` gives the rows. The first and the last of them are the ends, and the last needs a 1 more.

# %% [blank]
def square_around(mask, margin=.1):
    "mask: bool (height, width). Gives (left, upper, right, lower) of a square around what is True."
    return ...

# %% [solution]
def square_around(mask, margin=.1):
    "mask: bool (height, width). Gives (left, upper, right, lower) of a square around what is True."
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, upper, lower = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    side = max(right - left, lower - upper)*(1 + 2*margin)
    x, y = (left + right)/2, (upper + lower)/2
    return x - side/2, y - side/2, x + side/2, y + side/2

# %% [wrong] rows and columns exchanged
def square_around(mask, margin=.1):
    rows, columns = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, upper, lower = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    side = max(right - left, lower - upper)*(1 + 2*margin)
    x, y = (left + right)/2, (upper + lower)/2
    return x - side/2, y - side/2, x + side/2, y + side/2

# %% [wrong] a rectangle, which would be squeezed
def square_around(mask, margin=.1):
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, upper, lower = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    x, y = margin*(right - left), margin*(lower - upper)
    return left - x, upper - y, right + x, lower + y

# %% [wrong] forgets the last column and row
def square_around(mask, margin=.1):
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, upper, lower = columns[0], columns[-1], rows[0], rows[-1]
    side = max(right - left, lower - upper)*(1 + 2*margin)
    x, y = (left + right)/2, (upper + lower)/2
    return x - side/2, y - side/2, x + side/2, y + side/2

# %% [wrong] the margin on one side only
def square_around(mask, margin=.1):
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, right, upper, lower = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    side = max(right - left, lower - upper)*(1 + margin)
    x, y = (left + right)/2, (upper + lower)/2
    return x - side/2, y - side/2, x + side/2, y + side/2

# %% [check]
answer = square_around(mask, margin=0)
assert isinstance(answer, (tuple, list, np.ndarray)) and len(answer) == 4, 'the function should give four numbers: left, upper, right, lower'
left, upper, right, lower = answer
assert abs((right - left) - (lower - upper)) < 1e-6, f'{right - left:g} wide and {lower - upper:g} high is no square; enlarged to a square it would squeeze the chest, and the heart with it'
assert abs((left + right)/2 - 51) > 1e-6 or abs((upper + lower)/2 - 55) > 1e-6, 'rows and columns are exchanged: the first axis of a mask is its height, so mask.any(axis=0) leaves the columns'
assert abs((right - left) - 69) > 1e-6, 'the last column belongs to the lung: right is exclusive, one more than the last column'
assert np.allclose(answer, (20, 16, 90, 86)), f'without a margin the square is (20, 16, 90, 86), yours is {tuple(float(v) for v in answer)}'
wide = square_around(mask, margin=.1)
assert abs(wide[2] - wide[0] - 77) > 1e-6, 'the margin belongs on both sides: 1 + 2·margin'
assert np.allclose(wide, (13, 9, 97, 93)), f'with a margin of a tenth the square is (13, 9, 97, 93), yours is {tuple(round(float(v), 2) for v in wide)}'

# %% [markdown]
# ## 4. What do three seeds say?
#
# A fusion of two small networks and the better of them alone, each trained three times with the same three seeds: these are their test scores (macro AUROC, synthetic images). A seed decides more than the first weights: it also decides the order of the images, which is the same for both models. So the scores come in pairs. Give the mean gain of the fusion and the 95 % interval by Student's formula: mean ± *t* · *s*/√*n*, where *s* is the standard deviation of the gains (dividing by *n* − 1), and *t* is 4.303 for three values.

# %%
fusion = np.array([.793, .754, .752])
resnet = np.array([.764, .749, .773])
T = 4.303

# %% [hint]
# Form the three differences first; everything else is computed from them. NumPy's `std` divides by *n* unless you give `ddof=1`.

# %% [blank]
def gain_interval(new, old):
    "Two arrays with a score for each seed, in the same order. Gives (mean gain, low, high)."
    return ...

# %% [solution]
def gain_interval(new, old):
    "Two arrays with a score for each seed, in the same order. Gives (mean gain, low, high)."
    gains = new - old
    margin = T*gains.std(ddof=1)/np.sqrt(len(gains))
    return gains.mean(), gains.mean() - margin, gains.mean() + margin

# %% [wrong] divides by n
def gain_interval(new, old):
    gains = new - old
    margin = T*gains.std()/np.sqrt(len(gains))
    return gains.mean(), gains.mean() - margin, gains.mean() + margin

# %% [wrong] the spread of single runs instead of the mean's
def gain_interval(new, old):
    gains = new - old
    return gains.mean(), gains.mean() - T*gains.std(ddof=1), gains.mean() + T*gains.std(ddof=1)

# %% [wrong] a normal distribution from three values
def gain_interval(new, old):
    gains = new - old
    margin = 1.96*gains.std(ddof=1)/np.sqrt(len(gains))
    return gains.mean(), gains.mean() - margin, gains.mean() + margin

# %% [wrong] not paired
def gain_interval(new, old):
    mean = new.mean() - old.mean()
    margin = T*np.sqrt((new.var(ddof=1) + old.var(ddof=1))/len(new))
    return mean, mean - margin, mean + margin

# %% [check]
answer = gain_interval(fusion, resnet)
assert isinstance(answer, (tuple, list, np.ndarray)) and len(answer) == 3, 'the function should give three numbers: mean gain, low, high'
mean, low, high = answer
assert abs(mean - .004333) < 1e-3, f'the mean gain is 0.004, yours is {mean:.3f}: fusion minus ResNet, averaged over the seeds'
margin, s = (high - low)/2, (fusion - resnet).std(ddof=1)
assert abs(margin - T*s) > 1e-4, 'this is the interval of a single run; that of a mean of three is narrower, by the root of three'
assert abs(margin - T*(fusion - resnet).std()/3**.5) > 1e-4, 'NumPy divided by n; give ddof=1, so that it divides by n - 1'
assert abs(margin - 1.96*s/3**.5) > 1e-4, 'with three values the factor is 4.303 and not the 1.96 of a large sample'
assert abs(margin - T*np.sqrt((fusion.var(ddof=1) + resnet.var(ddof=1))/3)) > 1e-4, 'the scores come in pairs: take the difference for each seed first, then its standard deviation'
assert abs(margin - T*s/3**.5) < 1e-4 and abs((low + high)/2 - mean) < 1e-6, f'the interval should reach {T*s/3**.5:.3f} to both sides of the mean, yours reaches {margin:.3f}'

# %% [markdown]
# ## 5. Which patients were drawn?
#
# Two simulated models look at the same 300 images of 80 patients. Draw the *patients* again, with replacement, 300 times, and give the 2.5th and 97.5th percentile of the difference of the two AUROCs. Each drawn patient brings all of his or her images, as often as he or she was drawn, and both models are scored on the same draw.

# %%
rng = np.random.default_rng(1)
patient = np.sort(rng.integers(0, 80, 300))
tendency = rng.normal(size=80)[patient]  # images of one patient resemble each other
target = tendency + rng.normal(size=300) > 1
shared = 1.2*target + 1.5*tendency + rng.normal(size=300)
first, second = shared + .4*rng.normal(size=300), shared + .3*target + .4*rng.normal(size=300)
print(f'AUROC {auroc(target, first):.3f} and {auroc(target, second):.3f}')

# %% [hint]
# `drawn = rng.choice(np.unique(patient), size=80)` draws numbers of patients. `np.concatenate([np.flatnonzero(patient == p) for p in drawn])` gives the rows of their images. Use the same rows for both models.

# %% [blank]
def interval_over_patients(target, first, second, patient, rng):
    "Percentiles 2.5 and 97.5 of auroc(second) - auroc(first) over 300 draws of patients."
    return ...

# %% [solution]
def interval_over_patients(target, first, second, patient, rng):
    "Percentiles 2.5 and 97.5 of auroc(second) - auroc(first) over 300 draws of patients."
    who, differences = np.unique(patient), []
    rows_of = {p: np.flatnonzero(patient == p) for p in who}
    for _ in range(300):
        rows = np.concatenate([rows_of[p] for p in rng.choice(who, size=len(who))])
        differences.append(auroc(target[rows], second[rows]) - auroc(target[rows], first[rows]))
    return np.percentile(differences, [2.5, 97.5])

# %% [wrong] draws images
def interval_over_patients(target, first, second, patient, rng):
    differences = []
    for _ in range(300):
        rows = rng.integers(0, len(target), len(target))
        differences.append(auroc(target[rows], second[rows]) - auroc(target[rows], first[rows]))
    return np.percentile(differences, [2.5, 97.5])

# %% [wrong] another draw for each model
def interval_over_patients(target, first, second, patient, rng):
    who, differences = np.unique(patient), []
    def draw(): return np.concatenate([np.flatnonzero(patient == p) for p in rng.choice(who, size=len(who))])
    for _ in range(300):
        a, b = draw(), draw()
        differences.append(auroc(target[b], second[b]) - auroc(target[a], first[a]))
    return np.percentile(differences, [2.5, 97.5])

# %% [wrong] each drawn patient counts once
def interval_over_patients(target, first, second, patient, rng):
    who, differences = np.unique(patient), []
    for _ in range(300):
        rows = np.isin(patient, rng.choice(who, size=len(who)))
        differences.append(auroc(target[rows], second[rows]) - auroc(target[rows], first[rows]))
    return np.percentile(differences, [2.5, 97.5])

# %% [check]
class Asked:
    "A random generator that remembers what it was asked for."
    def __init__(self): self.rng, self.sizes, self.pools = np.random.default_rng(0), [], []
    def choice(self, pool, size=None, replace=True, **more):
        drawn = self.rng.choice(pool, size=size, replace=replace, **more)
        self.sizes.append(np.size(drawn)); self.pools.append(np.size(pool) if np.ndim(pool) else int(pool))
        return drawn
    def integers(self, low, high=None, size=None, **more):
        drawn = self.rng.integers(low, high, size, **more)
        self.sizes.append(np.size(drawn)); self.pools.append(int(low if high is None else high - low))
        return drawn
    def __getattr__(self, name): return getattr(self.rng, name)

asked = Asked()
answer = interval_over_patients(target, first, second, patient, asked)
assert isinstance(answer, (tuple, list, np.ndarray)) and len(answer) == 2, 'the function should give two numbers: the percentiles 2.5 and 97.5'
n = len(np.unique(patient))
assert asked.pools and set(asked.pools) == {n}, f'draw among the {n} patients (rng.choice or rng.integers), not among the {len(target)} images: images of one patient belong together'
assert len(asked.sizes) <= 300, 'score both models on the same draw: one draw of patients for each of the 300 differences'
width, truth = answer[1] - answer[0], .052
assert abs(width - truth) < .25*truth, f'the interval is {width:.3f} wide, expected about {truth}: a patient who is drawn twice brings all images twice'
