# %% [markdown]
# # Exercises 10 · Using it
#
# > How rare a finding may be, a limit that keeps its promise, a neighbour who is no relative, and a month that is not chance

# %% [markdown]
# Four exercises, about 45 minutes. Everything here is NumPy and SciPy; features, distances and months are **simulated**, and nothing is trained. Not for clinical use.

# %%
import numpy as np
from scipy.stats import binom

# %% [markdown]
# ## 1. How rare may a finding be?
#
# A threshold has a sensitivity and a specificity. Where the finding is rare, most flags are wrong. Write `rarest(sensitivity, specificity, right=.5)`: the prevalence at which just this share of the flagged images has the finding.

# %% [hint]
# Of 1,000 images with prevalence `p`, `1000*p*sensitivity` are rightly flagged and `1000*(1 - p)*(1 - specificity)` wrongly. For `right=.5` the two are equal. It is easiest to find the odds `p/(1 - p)` first; `p` is `odds/(1 + odds)`.

# %% [blank]
def rarest(sensitivity, specificity, right=.5):
    return ...

# %% [solution]
def rarest(sensitivity, specificity, right=.5):
    odds = right/(1 - right)*(1 - specificity)/sensitivity
    return odds/(1 + odds)

# %% [wrong] the false positive rate is taken for the answer
def rarest(sensitivity, specificity, right=.5):
    return 1 - specificity

# %% [wrong] odds are left as odds
def rarest(sensitivity, specificity, right=.5):
    return right/(1 - right)*(1 - specificity)/sensitivity

# %% [wrong] upside down
def rarest(sensitivity, specificity, right=.5):
    odds = right/(1 - right)*sensitivity/(1 - specificity)
    return odds/(1 + odds)

# %% [wrong] the share is forgotten
def rarest(sensitivity, specificity, right=.5):
    odds = (1 - specificity)/sensitivity
    return odds/(1 + odds)

# %% [wrong] specificity and its complement are mixed up
def rarest(sensitivity, specificity, right=.5):
    odds = right/(1 - right)*specificity/sensitivity
    return odds/(1 + odds)

# %% [check]
answer = rarest(.8, .9)
assert answer is not ..., 'write the prevalence in place of the dots'
assert not np.isclose(answer, .1), 'a specificity of .9 alone does not decide it: at 10 % of 1,000 images 80 are rightly flagged and 90 wrongly'
assert not np.isclose(answer, .125), 'these are odds, 1 to 8: as a share of all images it is 1 of 9'
assert answer < .5, f'at {answer:.0%} of 1,000 images {800*answer:.0f} are rightly flagged and {100*(1 - answer):.0f} wrongly: far from half and half. Is a quotient upside down, or the specificity in place of its complement?'
assert np.isclose(answer, 1/9), f'at one in nine, of 900 images 80 are rightly flagged and 80 wrongly; this says {answer:.3f}'
assert np.isclose(rarest(.8, .9, right=.9), 9/17), f'for nine right flags of ten the finding must be in {9/17:.0%} of the images; this says {rarest(.8, .9, right=.9):.0%}. Is `right` used?'
assert np.isclose(rarest(.8, 1.), 0), 'with a specificity of 1 every flag is right, however rare the finding'

# %% [markdown]
# ## 2. A limit that keeps its promise
#
# Each validation image has a distance: how strange it is to the model. An image is refused if its distance is **above** the limit. Write `limit(distances, share)`: the smallest of the distances at which *no more than* this share of the validation images would be refused.

# %% [hint]
# Sort them. Of `n` images, how many may be refused? `int(share*n)`, rounded down. The limit is the distance just below those. (Mind the last place of a sorted array.)

# %% [blank]
def limit(distances, share):
    return ...

# %% [solution]
def limit(distances, share):
    allowed = int(share*len(distances))
    return np.sort(distances)[len(distances) - allowed - 1]

# %% [wrong] an interpolated quantile lets one more image through
def limit(distances, share):
    return np.quantile(distances, 1 - share)

# %% [wrong] a bell curve is taken for granted
def limit(distances, share):
    from scipy.stats import norm
    return np.mean(distances) + norm.ppf(1 - share)*np.std(distances)

# %% [wrong] nobody is ever refused
def limit(distances, share):
    return np.max(distances)

# %% [wrong] the strange end is mistaken for the familiar one
def limit(distances, share):
    return np.sort(distances)[int(share*len(distances))]

# %% [wrong] one place too high in the sorted list
def limit(distances, share):
    allowed = int(share*len(distances))
    return np.sort(distances)[len(distances) - allowed]

# %% [check]
rng = np.random.default_rng(0)
valid = rng.lognormal(0, .5, 250)                          # skewed, as distances are
answer = limit(valid.copy(), .02)
assert answer is not ..., 'write the limit in place of the dots'
above = int((valid > answer).sum())
assert above < 125, f'{above} of 250 images would be refused: sorted upwards, the strange images are at the end'
assert above <= 5, f'{above} of 250 images would be refused, {above/250:.1%}; 2 % are 5 images'
assert above == 5, f'only {above} of 250 images would be refused where 5 may be: a higher limit than needed lets more strangers in. Is a bell curve assumed, or a place counted wrongly?'
assert answer in valid, 'the limit should be one of the distances; an interpolated one lies between two'
few = rng.lognormal(0, .5, 150)
assert (few > limit(few.copy(), .01)).sum() == 1, f'of 150 images 1 % is one and a half, so one may be refused; here {(few > limit(few.copy(), .01)).sum()} would be. Round down, and do not interpolate'

# %% [markdown]
# ## 3. A neighbour who is no relative
#
# A new image is strange if even the nearest training image is far away. How far is usual? Ask it of the training images themselves: how far is each from its nearest neighbour? Write `usual_distances(features, patients)`: for every image, the distance to the nearest image **of another patient**, for a new patient has no relatives among the known ones. `features` is (n, k), `patients` has n ids.

# %% [hint]
# `np.linalg.norm(features[:, None] - features[None], axis=2)` is the table of all distances. Set those between images of one patient to infinity, and take the smallest of each row. An image is of its own patient, too.

# %% [blank]
def usual_distances(features, patients):
    return ...

# %% [solution]
def usual_distances(features, patients):
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    distances[patients[:, None] == patients[None]] = np.inf
    return distances.min(axis=1)

# %% [wrong] each image is its own nearest neighbour
def usual_distances(features, patients):
    return np.linalg.norm(features[:, None] - features[None], axis=2).min(axis=1)

# %% [wrong] images of the same patient count
def usual_distances(features, patients):
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)

# %% [wrong] the mean over all other patients, not the nearest
def usual_distances(features, patients):
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    distances[patients[:, None] == patients[None]] = np.nan
    return np.nanmean(distances, axis=1)

# %% [wrong] squared distances
def usual_distances(features, patients):
    distances = ((features[:, None] - features[None])**2).sum(axis=2)
    distances[patients[:, None] == patients[None]] = np.inf
    return distances.min(axis=1)

# %% [check]
places, people = np.array([[0., 0], [0, 1], [3, 4], [3, 5], [10, 0]]), np.array([1, 1, 2, 2, 3])
answer = usual_distances(places.copy(), people.copy())
assert answer is not ..., 'write the distances in place of the dots'
answer = np.asarray(answer)
assert answer.shape == (5,), f'five images have five distances; this has the shape {answer.shape}'
assert not np.allclose(answer, 0), 'every image is its own nearest neighbour here, at distance 0: leave it out'
assert not np.isclose(answer[0], 1), 'the nearest image to the first one is of the same patient. Images of one patient are alike, so this makes a limit that strangers to the training patients cannot keep'
assert not np.isclose(answer[4], 65), 'these are squares of distances: take the root'
assert np.allclose(answer, [5, 18**.5, 18**.5, 5, 65**.5]), f'[5, 4.24, 4.24, 5, 8.06] is expected; this says {np.round(answer, 2)}. Is it the nearest image of another patient?'
rng = np.random.default_rng(1)
def simulated(n): return (rng.normal(size=(n, 1, 3)) + .15*rng.normal(size=(n, 5, 3))).reshape(-1, 3), np.repeat(np.arange(n), 5)
(known, owners), (new, _) = simulated(40), simulated(400)  # five images of each patient, close together
to_known = np.linalg.norm(new[:, None] - known[None], axis=2).min(axis=1)
refused = (to_known > np.quantile(usual_distances(known, owners), .98)).mean()
assert refused < .1, f'the limit that 2 % of the training images exceed would refuse {refused:.0%} of the images of new simulated patients'

# %% [markdown]
# ## 4. A month that is not chance
#
# After the first day shares are watched: of images flagged, of images refused. The share used to be `usual`; this month it was `count` of `images`. **More** than usual may mean other patients; **fewer**, that a machine was changed, or that somebody stopped sending a kind of file. Write `alarm(count, images, usual)`: `True` if a count this high *or higher* would have a probability below one in two thousand, or one this low *or lower* would, were the share still the usual one and the images independent of each other. (Both sides together: at most one false alarm in a thousand months.)

# %% [hint]
# The count follows a binomial distribution. `binom.cdf(k, n, p)` is the probability of `k` or fewer, `binom.sf(k, n, p)` that of *more than* `k`; you need that of `k` or more.

# %% [blank]
def alarm(count, images, usual):
    return ...

# %% [solution]
def alarm(count, images, usual):
    higher, lower = binom.sf(count - 1, images, usual), binom.cdf(count, images, usual)
    return bool(min(higher, lower) < 1/2000)

# %% [wrong] only a share that rises is noticed
def alarm(count, images, usual):
    return bool(binom.sf(count - 1, images, usual) < 1/2000)

# %% [wrong] only a share that falls is noticed
def alarm(count, images, usual):
    return bool(binom.cdf(count, images, usual) < 1/2000)

# %% [wrong] twice or half the usual share, however few images there are
def alarm(count, images, usual):
    return not usual/2 <= count/images <= 2*usual

# %% [wrong] three standard errors, which promise nothing where a share is near zero
def alarm(count, images, usual):
    return bool(abs(count/images - usual) > 3*np.sqrt(usual*(1 - usual)/images))

# %% [wrong] more than, instead of as many or more
def alarm(count, images, usual):
    return bool(min(binom.sf(count, images, usual), binom.cdf(count, images, usual)) < 1/2000)

# %% [wrong] fewer than, instead of as many or fewer
def alarm(count, images, usual):
    return bool(min(binom.sf(count - 1, images, usual), binom.cdf(count - 1, images, usual)) < 1/2000)

# %% [wrong] one in a thousand on each side
def alarm(count, images, usual):
    return bool(min(binom.sf(count - 1, images, usual), binom.cdf(count, images, usual)) < 1/1000)

# %% [wrong] exactly as many
def alarm(count, images, usual):
    return bool(binom.pmf(count, images, usual) < 1/2000)

# %% [wrong] any month unlike the usual
def alarm(count, images, usual):
    return count/images != usual

# %% [check]
assert alarm(24, 150, .15) is not ..., 'write True or False in place of the dots'
assert not alarm(19, 150, .15) and not alarm(26, 150, .15), '19 or 26 flags of 150, where 22 or 23 are usual, are chance'
assert alarm(57, 150, .15), '57 flags of 150 where 22 or 23 are usual are no chance: this should raise the alarm'
assert alarm(4, 150, .15), '4 flags of 150 where 22 or 23 are usual are no chance either: a share that falls is a sign, too'
assert not alarm(1, 20, .01), 'one refused image of twenty is 5 %, five times the usual share, and still happens by chance in one month of six: with few images, shares jump'
assert not alarm(0, 150, .01), f'no refusal at all where 1 % is usual has a probability of {binom.cdf(0, 150, .01):.2f} among 150 images: so small a share cannot fall by enough to be noticed'
assert not alarm(6, 150, .01), f'6 or more refusals of 150 have a probability of {binom.sf(5, 150, .01):.4f}, above one in two thousand. Standard errors mislead where few are expected: ask the binomial distribution'
assert not alarm(38, 150, .15), f'38 or more of 150 have a probability of {binom.sf(37, 150, .15):.5f}, above one in two thousand. Do you count "more than 38" (sf leaves out its own number), or allow one in a thousand on each side?'
assert alarm(39, 150, .15), f'39 or more of 150 have a probability of {binom.sf(38, 150, .15):.5f}: below one in two thousand'
assert not alarm(9, 150, .15), f'9 or fewer of 150 have a probability of {binom.cdf(9, 150, .15):.5f}, just above one in two thousand. Do you count "fewer than 9" (cdf includes its own number)?'
assert alarm(8, 150, .15), f'8 or fewer of 150 have a probability of {binom.cdf(8, 150, .15):.5f}: below one in two thousand'
assert not alarm(1_000_000, 100_000_000, .01), 'exactly the usual share: among so many images any single count is improbable, which is why you need the probability of that count *or more*, *or fewer*'
