# %% [markdown]
# # Exercises 08 · Where does it look?
#
# > Build a map that adds up, score it two ways, build the map that never looks, remove pixels, and compare on patients

# %% [markdown]
# Five exercises, about an hour. Everything here is NumPy, and the boxes are those of the **synthetic** data set; nothing is trained.

# %%
import numpy as np
import pandas as pd
from chestnb.data.dataset import ChestDataset, embedded_dataset
from chestnb.data.parts import images_in
from chestnb.data.split import patient_split
from chestnb.evaluation.localisation import box_pairs, box_targets, location_prior

# %%
dataset = ChestDataset(embedded_dataset())
split = patient_split(dataset.table, seed=0)
test = dataset.table[dataset.table.image.isin(images_in(split, 'test'))]
pairs = box_pairs(dataset.boxes, test)
pairs = pairs[pairs.finding.isin(['Cardiomegaly', 'Nodule', 'Effusion'])].reset_index(drop=True)
targets = box_targets(pairs, dataset.boxes, dataset, map_size=32)

# %% [markdown]
# ## 1. A map that adds up
#
# A model ends like this: a fused map of 6 channels on a 4×4 grid, an attention map that sums to 1, a head with one weight a channel, and a bias. The pooled value of a channel is its mean weighted by attention; the logit is the sum of pooled values times head weights, plus the bias.
#
# Write `evidence(features, attention, weights)`: a map of 4×4 whose sum, plus the bias, is the logit.

# %%
random = np.random.default_rng(8)
features, weights, bias = random.normal(size=(6, 4, 4)), random.normal(size=6), -1.5
attention = random.random((4, 4))**4
attention /= attention.sum()
logit = sum(weights[c]*(attention*features[c]).sum() for c in range(6)) + bias

# %% [hint]
# Two sums, over channels and over places, can be taken in either order. For one place: what does it add to each pooled value, and what does that add to the logit?

# %% [blank]
def evidence(features, attention, weights):
    return ...

# %% [solution]
def evidence(features, attention, weights):
    return attention*np.tensordot(weights, features, axes=1)

# %% [wrong] attention is forgotten
def evidence(features, attention, weights):
    return np.tensordot(weights, features, axes=1)

# %% [wrong] attention is taken for evidence
def evidence(features, attention, weights):
    return attention

# %% [wrong] negative evidence is dropped too early
def evidence(features, attention, weights):
    return np.maximum(attention*np.tensordot(weights, features, axes=1), 0)

# %% [wrong] a plain mean in place of the attention
def evidence(features, attention, weights):
    return np.tensordot(weights, features, axes=1)/16

# %% [check]
answer = evidence(features, attention, weights)
assert answer is not ..., 'write the map of evidence in place of the dots'
answer = np.asarray(answer, float)
assert answer.shape == (4, 4), f'one number for each place is wanted, 4×4; this has the shape {answer.shape}'
assert not np.allclose(answer, attention), 'that is the attention: it says where features are taken from, not whether they speak for the finding'
assert answer.min() < 0, 'nothing in this map is negative, but some places speak against the finding; the sum cannot be the logit without them'
assert not np.isclose(answer.sum(), np.tensordot(weights, features, axes=1).sum()), 'the places are not weighted: each one counts by its attention'
assert np.isclose(answer.sum() + bias, logit), f'the map sums to {answer.sum():.3f}; with the bias that is {answer.sum() + bias:.3f}, and the logit is {logit:.3f}. Is each place weighted by its attention?'

# %% [markdown]
# ## 2. Energy in the box
#
# Write `energy(map_, box)`: the share of the map's sum that lies inside the box. `map_` has no negative values, `box` is a boolean array of the same shape. A map of zeros says nothing about place: give it what a uniform map gets.

# %% [hint]
# What does a uniform map get? Its sum inside the box is proportional to the number of pixels there.

# %% [blank]
def energy(map_, box):
    return ...

# %% [solution]
def energy(map_, box):
    return map_[box].sum()/map_.sum() if map_.sum() > 0 else box.mean()

# %% [wrong] a map of zeros gives NaN
def energy(map_, box):
    with np.errstate(invalid='ignore'): return map_[box].sum()/map_.sum()

# %% [wrong] a map of zeros counts as a miss
def energy(map_, box):
    return map_[box].sum()/map_.sum() if map_.sum() > 0 else 0.

# %% [wrong] this is the pointing game
def energy(map_, box):
    return box[map_ == map_.max()].mean()

# %% [wrong] the mean in the box against the mean of the map
def energy(map_, box):
    return map_[box].mean()/map_.mean() if map_.sum() > 0 else box.mean()

# %% [check]
box = np.zeros((8, 8), bool)
box[2:4, 2:6] = True                                      # 8 of 64 pixels
spread = np.ones((8, 8))
spread[3, 3] = 2                                          # the maximum is inside, and nearly everything else is outside
assert energy(spread, box) is not ..., 'write the share in place of the dots'
assert not np.isclose(energy(spread, box), 1), 'that is the pointing game: it looks at the highest pixel only. Energy takes the whole map'
assert energy(np.ones((8, 8)), box) <= 1 and np.isclose(energy(np.ones((8, 8)), box), 8/64), f'a uniform map has 8/64 of its energy in a box of 8 of 64 pixels; this says {energy(np.ones((8, 8)), box):.3f}'
assert np.isclose(energy(spread, box), 9/65), f'9 of 65 lie in the box, which is {9/65:.3f}; this says {energy(spread, box):.3f}'
assert not np.isnan(energy(np.zeros((8, 8)), box)), 'a map of zeros has no sum to divide by: say what it gets before dividing'
assert np.isclose(energy(np.zeros((8, 8)), box), 8/64), 'a map of zeros gets what a uniform map gets, the share of the area: 0 would be worse than guessing'

# %% [markdown]
# ## 3. The map that never looks
#
# Write `prior(row)`: the location prior of pair number `row`, as an array (32, 32). It is the mean box (`targets`) of the same finding in *other patients*. `pairs` has the columns image, finding and patient_id.

# %% [hint]
# One patient has several images, and the heart is in the same place in all of them. Which rows may be averaged?

# %% [blank]
def prior(row):
    return ...

# %% [solution]
def prior(row):
    own = pairs.iloc[row]
    return targets[(pairs.finding == own.finding) & (pairs.patient_id != own.patient_id)].mean(0)

# %% [wrong] the own box is in the mean
def prior(row):
    return targets[pairs.finding == pairs.finding[row]].mean(0)

# %% [wrong] only the own image is left out, not the own patient
def prior(row):
    return targets[(pairs.finding == pairs.finding[row]) & (pairs.image != pairs.image[row])].mean(0)

# %% [wrong] boxes of all findings
def prior(row):
    return targets[pairs.patient_id != pairs.patient_id[row]].mean(0)

# %% [check]
row = int(pairs.index[pairs.duplicated(['patient_id', 'finding'], keep=False)][0])
answer, finding, patient = prior(row), pairs.finding[row], pairs.patient_id[row]
assert answer is not ..., 'write the mean box in place of the dots'
assert np.shape(answer) == (32, 32), f'a map of 32×32 is wanted; this has the shape {np.shape(answer)}'
wanted = location_prior(pairs, targets)
same = (pairs.finding == finding).to_numpy()
assert not np.allclose(answer, targets[same].mean(0)), 'the own box is part of this mean: the map has seen the answer'
assert not np.allclose(answer, targets[same & (pairs.image != pairs.image[row]).to_numpy()].mean(0)), f'other images of patient {patient} are part of this mean: nearly the same box, so nearly the answer. Leave out the patient'
assert not np.allclose(answer, targets[(pairs.patient_id != patient).to_numpy()].mean(0)), f'boxes of all findings are in this mean; wanted is where {finding} lies'
assert all(np.allclose(prior(i), wanted[i], atol=1e-6) for i in range(0, len(pairs), 9)), 'right for one pair and wrong for others: is the row that is asked for the one that is used?'

# %% [markdown]
# ## 4. A pixel is removed
#
# ROAD fills a removed pixel by the weighted mean of its neighbours: 1/6 for each direct one, 1/12 for each diagonal one. At the edge, where there are fewer, the weights that are left are scaled so that they sum to 1.
#
# Here is an image of 3×3. What is filled in when only the middle is removed (`middle`)? And when only the upper left corner is (`corner`)? Give two numbers, by hand or by code.

# %%
image = np.array([[6., 0, 12], [3, 9, 0], [0, 6, 12]])

# %% [hint]
# The middle has eight neighbours. The corner has three: 0 on its right, 3 below, 9 on the diagonal; their weights 1/6, 1/6 and 1/12 sum to 5/12.

# %% [blank]
middle, corner = ..., ...

# %% [solution]
middle = (0 + 3 + 0 + 6)/6 + (6 + 12 + 0 + 12)/12
corner = ((0 + 3)/6 + 9/12)/(5/12)

# %% [wrong] all neighbours count alike
middle, corner = (0 + 3 + 0 + 6 + 6 + 12 + 0 + 12)/8, (0 + 3 + 9)/3

# %% [wrong] the weights at the edge are not scaled
middle, corner = (0 + 3 + 0 + 6)/6 + (6 + 12 + 0 + 12)/12, (0 + 3)/6 + 9/12

# %% [wrong] direct and diagonal weights are exchanged
middle, corner = (0 + 3 + 0 + 6)/12 + (6 + 12 + 0 + 12)/6, ((0 + 3)/12 + 9/6)/(4/12)

# %% [wrong] the removed value is used
middle, corner = (9 + 4.)/2, (6 + 3.)/2

# %% [check]
assert middle is not ... and corner is not ..., 'write two numbers in place of the dots'
assert not np.isclose(middle, 39/8), 'all eight neighbours count alike here; the direct ones have twice the weight of the diagonal ones'
assert not np.isclose(middle, 9/12 + 30/6), 'the weights are swapped: 1/6 for direct neighbours, 1/12 for diagonal ones'
assert np.isclose(middle, 4), f'the middle is 9/6 + 30/12 = 4, not {middle}. Its own value of 9 is gone and must not be used'
assert not np.isclose(corner, 1.25), 'the three weights of the corner sum to 5/12, not to 1: divide by it, or the edge of each hole would darken'
assert np.isclose(corner, 3), f'the corner is (3/6 + 9/12)/(5/12) = 3, not {corner}'

# %% [markdown]
# ## 5. Better than the prior?
#
# Two maps were scored on the same pairs: `model_hit` and `prior_hit` are 0 or 1 for each pair, `patient` says whose it is. Write `difference_interval(model_hit, prior_hit, patient)`: the 95 % bootstrap interval (low, high) of the difference of the two hit rates, model minus prior. Draw *patients*, 2,000 times, and keep the pairing.

# %%
drawn = np.random.default_rng(1)
skill = drawn.normal(size=40).repeat(6)                   # six pairs a patient, who is easy or hard in all of them
patient = np.arange(40).repeat(6)
model_hit = (skill + drawn.normal(size=240)*.3 > -.2).astype(float)
prior_hit = (drawn.random(240) < .4).astype(float)

# %% [hint]
# The difference of two means on the same pairs is the mean of the differences. Every patient has six pairs here, so a drawn patient brings the mean of six.

# %% [blank]
def difference_interval(model_hit, prior_hit, patient):
    return ...

# %% [solution]
def difference_interval(model_hit, prior_hit, patient):
    each = pd.Series(model_hit - prior_hit).groupby(patient).agg(['sum', 'size']).to_numpy()
    draws = np.random.default_rng(0).integers(len(each), size=(2000, len(each)))
    sums, sizes = each[draws].sum(1).T
    return np.percentile(sums/sizes, [2.5, 97.5])

# %% [wrong] pairs are drawn, not patients
def difference_interval(model_hit, prior_hit, patient):
    difference = model_hit - prior_hit
    draws = np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))
    return np.percentile(difference[draws].mean(1), [2.5, 97.5])

# %% [wrong] prior minus model
def difference_interval(model_hit, prior_hit, patient):
    each = pd.Series(prior_hit - model_hit).groupby(patient).mean().to_numpy()
    draws = np.random.default_rng(0).integers(len(each), size=(2000, len(each)))
    return np.percentile(each[draws].mean(1), [2.5, 97.5])

# %% [wrong] the spread of the patients, not of the mean
def difference_interval(model_hit, prior_hit, patient):
    each = pd.Series(model_hit - prior_hit).groupby(patient).mean().to_numpy()
    return np.percentile(each, [2.5, 97.5])

# %% [wrong] the hit rate of the model alone
def difference_interval(model_hit, prior_hit, patient):
    each = pd.Series(model_hit).groupby(patient).mean().to_numpy()
    draws = np.random.default_rng(0).integers(len(each), size=(2000, len(each)))
    return np.percentile(each[draws].mean(1), [2.5, 97.5])

# %% [check]
answer = difference_interval(model_hit, prior_hit, patient)
assert answer is not ..., 'write the interval in place of the dots'
assert np.shape(answer) == (2,), 'two numbers are wanted, low and high'
low, high = answer
each = pd.Series(model_hit - prior_hit).groupby(patient).mean()
middle, width = each.mean(), 3.92*each.std()/40**.5       # what the normal approximation gives for 40 patients
assert low < high, 'low comes first'
assert abs((low + high)/2 + middle) > .05, 'the sign is the wrong way round: model minus prior is wanted'
assert abs((low + high)/2 - middle) < .05, f'the interval is centred on {(low + high)/2:.2f}; the difference of the hit rates is {middle:.2f}'
assert high - low > .8*width, f'the interval is too narrow ({high - low:.2f}; about {width:.2f} is right): six pairs of one patient are not six patients. Draw patients'
assert high - low < 1.25*width, f'the interval is too wide ({high - low:.2f}; about {width:.2f} is right): it is to hold the mean over patients, not the single patients'
