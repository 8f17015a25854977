# %% [markdown]
# # Exercises 05 · What does a training curve tell?
#
# > Stop in time, count the luck of five seeds, write a schedule without a memory, average weights, and shuffle so that a run can be resumed

# %%
import numpy as np

# %% [markdown]
# ## 1. Stop in time
#
# *Early stopping* with a patience of 3 ends a run after the third epoch in a row that did not beat the best epoch so far. The weights of the best epoch are kept. From a list of validation scores that a long run would have had, give the number of the epoch that is kept and the number of the last epoch that is trained. Epochs are counted from 1. If the patience is never used up, the run goes to its end.

# %%
scores = [.55, .63, .62, .66, .65, .64, .66, .70, .71]

# %% [hint]
# Go through the epochs with a loop. Remember the best score and its epoch; the run ends when `epoch - best_epoch == patience`. An equal score does not beat the best.

# %% [blank]
def kept_and_last(scores, patience=3):
    "Gives (epoch that is kept, last epoch that is trained), counted from 1."
    return ...

# %% [solution]
def kept_and_last(scores, patience=3):
    "Gives (epoch that is kept, last epoch that is trained), counted from 1."
    best, best_epoch = -np.inf, 0
    for epoch, score in enumerate(scores, start=1):
        if score > best: best, best_epoch = score, epoch
        if epoch - best_epoch == patience: break
    return best_epoch, epoch

# %% [wrong] looks at the whole run before it stops
def kept_and_last(scores, patience=3):
    best = int(np.argmax(scores)) + 1
    return best, min(best + patience, len(scores))

# %% [wrong] compares with the epoch before
def kept_and_last(scores, patience=3):
    worse = 0
    for epoch, score in enumerate(scores, start=1):
        worse = worse + 1 if epoch > 1 and score <= scores[epoch - 2] else 0
        if worse == patience: break
    return int(np.argmax(scores[:epoch])) + 1, epoch

# %% [wrong] counts from 0
def kept_and_last(scores, patience=3):
    best, best_epoch = -np.inf, 0
    for epoch, score in enumerate(scores):
        if score > best: best, best_epoch = score, epoch
        if epoch - best_epoch == patience: break
    return best_epoch, epoch

# %% [check]
answer = kept_and_last(scores)
assert np.shape(answer) == (2,), 'the function should give two whole numbers: the kept epoch and the last one'
answer = tuple(answer)
assert answer != (3, 6), 'epochs are counted from 1, as in the history of a run'
assert answer[0] != 9, 'a run that has stopped never sees epoch 9: decide after every epoch, with what is known then'
assert answer == (4, 7), f'epoch 4 (0.66) is the best, epochs 5, 6 and 7 do not beat it: (4, 7), not {answer}. Compare with the best so far, not with the epoch before'
assert tuple(kept_and_last([.5, .6, .7])) == (3, 3), 'a run that keeps improving goes to its end, and the last epoch is kept'
assert tuple(kept_and_last([.7, .6, .65], patience=2)) == (1, 3), 'with a patience of 2, two epochs below the best end the run, though the second is better than the first of them'

# %% [markdown]
# ## 2. Doing nothing
#
# Five trainings differ in the seed only. Somebody trains once "before" and once "after" a change that does nothing, and calls the change an improvement if the score rises by at least `margin`. In which share of all ordered pairs of two different seeds does that happen?

# %%
best = np.array([.735, .728, .752, .741, .744])  # validation macro AUROC of five seeds

# %% [hint]
# There are 5 × 4 ordered pairs: seed *a* before and seed *b* after is another pair than the reverse. `best[None, :] - best[:, None]` is a table of all differences; its diagonal belongs to no pair.

# %% [blank]
def share_of_discoveries(best, margin):
    "Share of the ordered pairs of different seeds in which the second is higher than the first by at least `margin`."
    return ...

# %% [solution]
def share_of_discoveries(best, margin):
    "Share of the ordered pairs of different seeds in which the second is higher than the first by at least `margin`."
    rises = best[None, :] - best[:, None]
    return ((rises >= margin) & ~np.eye(len(best), dtype=bool)).sum()/(len(best)*(len(best) - 1))

# %% [wrong] a fall counts, too
def share_of_discoveries(best, margin):
    rises = np.abs(best[None, :] - best[:, None])
    return (rises >= margin).sum()/(len(best)*(len(best) - 1))

# %% [wrong] pairs of a seed with itself
def share_of_discoveries(best, margin): return (best[None, :] - best[:, None] >= margin).mean()

# %% [wrong] neighbours only
def share_of_discoveries(best, margin): return (np.diff(best) >= margin).mean()

# %% [check]
answer = share_of_discoveries(best, .0085)
assert isinstance(answer, (float, np.floating)), 'the function should give one number between 0 and 1'
assert abs(answer - 12/20) > 1e-9, 'a fall is no discovery: leave the sign, without abs'
assert abs(answer - 6/25) > 1e-9, 'five of the 25 pairs are a seed with itself; only 20 are pairs of different seeds'
assert abs(answer - 6/20) < 1e-9, f'six of 20 ordered pairs rise by 0.0085 or more: 0.30, not {answer:.3f}; compare every seed with every other one'
assert share_of_discoveries(best, 1.) == 0 and share_of_discoveries(np.array([.1, .2]), .05) == .5, 'of two seeds, one order rises and the other falls: one half'

# %% [markdown]
# ## 3. A schedule without a memory
#
# The one-cycle schedule is a function of the position in the run, from 0 to 1. It rises from `peak/25` to `peak` during the first quarter and falls to 0 at the end. Both parts are half waves of a cosine: from *a* to *b*, with *t* going from 0 to 1, the rate is *a* + (*b* − *a*)·(1 − cos π*t*)/2.

# %% [hint]
# In the first part *t* is `position/.25`, in the second `(position - .25)/.75`.

# %% [blank]
def one_cycle(position, peak):
    "Learning rate at a position in 0..1."
    return ...

# %% [solution]
def one_cycle(position, peak):
    "Learning rate at a position in 0..1."
    start, end, t = (peak/25, peak, position/.25) if position < .25 else (peak, 0, (position - .25)/.75)
    return start + (end - start)*(1 - np.cos(np.pi*t))/2

# %% [wrong] straight lines
def one_cycle(position, peak): return peak/25 + (peak - peak/25)*position/.25 if position < .25 else peak*(1 - (position - .25)/.75)

# %% [wrong] the peak is in the middle
def one_cycle(position, peak):
    start, end, t = (peak/25, peak, position/.5) if position < .5 else (peak, 0, (position - .5)/.5)
    return start + (end - start)*(1 - np.cos(np.pi*t))/2

# %% [wrong] starts at zero
def one_cycle(position, peak):
    start, end, t = (0, peak, position/.25) if position < .25 else (peak, 0, (position - .25)/.75)
    return start + (end - start)*(1 - np.cos(np.pi*t))/2

# %% [check]
answer = one_cycle(.25, 3e-3)
assert isinstance(answer, (float, np.floating, np.ndarray)) and np.ndim(answer) == 0, 'the function should give one number, the learning rate'
assert abs(answer - 3e-3) < 1e-9, f'after a quarter of the run the rate is at its peak, 0.003; yours is {answer:.5f}'
assert abs(one_cycle(0, 3e-3) - 1.2e-4) < 1e-9, f'the run begins at peak/25 = 0.00012; yours begins at {one_cycle(0, 3e-3):.5f}'
assert abs(one_cycle(1, 3e-3)) < 1e-9, 'the run ends at a rate of 0'
assert abs(one_cycle(.4375, 3e-3) - 2.56066e-3) < 1e-7, f'at position 0.4375 the cosine gives 0.00256, yours is {one_cycle(.4375, 3e-3):.5f}: half waves, not straight lines'

# %% [markdown]
# ## 4. An average of weights
#
# A run keeps a running average beside the weights that learn. It begins as a copy of the first weights; after each step, `decay` of it stays and the rest comes from the weights of that step. Give the average after every step.

# %%
rng = np.random.default_rng(0)
weights = np.linspace(0, 1, 60)[:, None] + .3*rng.normal(size=(60, 4))  # 60 steps, 4 weights that wander about while they learn

# %% [hint]
# A loop over the steps after the first: `average = decay*average + (1 - decay)*step`. Row 0 of the answer is `weights[0]` itself.

# %% [blank]
def averages(weights, decay):
    "weights: (steps, n). Gives an array of the same shape: the average after each step."
    return ...

# %% [solution]
def averages(weights, decay):
    "weights: (steps, n). Gives an array of the same shape: the average after each step."
    average, found = weights[0], [weights[0]]
    for step in weights[1:]:
        average = decay*average + (1 - decay)*step
        found.append(average)
    return np.array(found)

# %% [wrong] begins at zero
def averages(weights, decay):
    average, found = 0*weights[0], []
    for step in weights:
        average = decay*average + (1 - decay)*step
        found.append(average)
    return np.array(found)

# %% [wrong] decay is the share of the new weights
def averages(weights, decay):
    average, found = weights[0], [weights[0]]
    for step in weights[1:]:
        average = (1 - decay)*average + decay*step
        found.append(average)
    return np.array(found)

# %% [wrong] the plain mean of all steps so far
def averages(weights, decay): return np.cumsum(weights, axis=0)/np.arange(1, len(weights) + 1)[:, None]

# %% [wrong] averages with the step before only
def averages(weights, decay):
    found = weights.copy()
    found[1:] = decay*weights[:-1] + (1 - decay)*weights[1:]
    return found

# %% [check]
answer = averages(weights, .9)
assert isinstance(answer, np.ndarray) and answer.shape == weights.shape, f'the function should give an array of the shape {weights.shape}, one row a step; replace the dots'
assert np.allclose(answer[0], weights[0]), 'the average begins as a copy of the first weights; begun at zero, it would be too small for dozens of steps'
one = averages(np.array([[0.], [1.], [1.], [0.]]), .9)[:, 0]
assert abs(one[1] - .9) > 1e-9, 'decay is the share of the average that stays, not that of the new weights'
assert abs(one[1] - .5) > 1e-9, 'this is the plain mean of all steps, which never forgets the first ones; decay must go in'
assert np.allclose(one, [0, .1, .19, .171]), f'steps 0, 1, 1, 0 with a decay of .9 have the averages 0, .1, .19, .171; yours are {one.round(3)}: go on from the average, not from the weights of the step before'
assert np.diff(answer, axis=0).std() < .2*np.diff(weights, axis=0).std(), 'the average should move far less from step to step than the weights do'

# %% [markdown]
# ## 5. Shuffle, and be able to resume
#
# Write the order in which an epoch reads its images. Every epoch and every seed needs another order; and a process that starts at epoch 7, after a power cut, must draw the order that it would have drawn without the cut.

# %% [hint]
# No generator may live from one epoch to the next: make one inside the function. `np.random.default_rng([seed, epoch])` mixes two numbers; their sum would make epoch 2 of seed 1 equal to epoch 1 of seed 2.

# %% [blank]
def order_of_images(n, seed, epoch):
    "Numbers 0..n-1 in the order in which this epoch reads them."
    return ...

# %% [solution]
def order_of_images(n, seed, epoch):
    "Numbers 0..n-1 in the order in which this epoch reads them."
    return np.random.default_rng([seed, epoch]).permutation(n)

# %% [wrong] one generator for the whole run
run_rng = np.random.default_rng(0)
def order_of_images(n, seed, epoch): return run_rng.permutation(n)

# %% [wrong] the same order in every epoch
def order_of_images(n, seed, epoch): return np.random.default_rng(seed).permutation(n)

# %% [wrong] the sum of seed and epoch
def order_of_images(n, seed, epoch): return np.random.default_rng(seed + epoch).permutation(n)

# %% [wrong] draws with replacement
def order_of_images(n, seed, epoch): return np.random.default_rng([seed, epoch]).integers(0, n, n)

# %% [check]
answer = order_of_images(100, seed=1, epoch=7)
assert answer is not ..., 'the function should give the numbers 0 to n-1 in some order; replace the dots'
assert sorted(answer) == list(range(100)), 'each image is read exactly once an epoch: a permutation, not a draw with replacement'
order_of_images(100, 1, 3)
assert list(order_of_images(100, 1, 7)) == list(answer), 'the order of epoch 7 depends on what was drawn before it, so a resumed run would read other images: make the generator inside the function'
assert list(order_of_images(100, 1, 8)) != list(answer), 'two epochs of one run read the images in the same order: the epoch must go into the seed'
assert list(order_of_images(100, 2, 7)) != list(answer), 'two seeds read the images in the same order: the seed must go in'
assert list(order_of_images(100, 2, 6)) != list(answer), 'seed 2, epoch 6 is the same as seed 1, epoch 7: give the generator both numbers in a list, not their sum'
