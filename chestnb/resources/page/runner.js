// From pixels to an answer: chestnb's using.runner in JavaScript, function by function. `spec` is model.json; `words` holds the library's sentences.
'use strict'

if (typeof module !== 'undefined') Object.assign(globalThis, require('./pixels.js'))

// ---- where the lungs are ----
// A mask is kept as runs along its rows: [start, end) in places of a mask with an empty column at its right, so that no run crosses rows.

// Runs of the mask of a padded square, enlarged to its image and cut at one half; row by row, since a film has millions of pixels
function enlargedRuns(probability, small, width, height) {
  const side = Math.max(width, height), upper = (side - height) >> 1, left = (side - width) >> 1, pitch = width + 1, starts = [], ends = []
  const wide = side === small ? {data: probability} : resized({width: small, height: small, data: probability}, side, small)
  const weights = side === small ? null : filterWeights(small, 0, small, side)
  for (let y = 0; y < height; y++) {
    const [first, w] = weights ? weights[upper + y] : [upper + y, [1]], base = first*side + left
    let inside = false
    for (let x = 0; x < width; x++) {
      let value = 0
      for (let i = 0, p = base + x; i < w.length; i++, p += side) value += wide.data[p]*w[i]
      const lung = Math.fround(value) > .5
      if (lung !== inside) (inside = lung) ? starts.push(y*pitch + x) : ends.push(y*pitch + x)
    }
    if (inside) ends.push(y*pitch + width)
  }
  return {starts, ends}
}

// The first run of the part that each run belongs to; corners do not touch
function partsOfRuns({starts, ends}, pitch) {
  const part = starts.map((_, i) => i)
  const root = run => { while (part[run] !== run) part[run] = run = part[part[run]]; return run }
  for (let run = 0, below = 0; run < starts.length; run++) {
    while (below < starts.length && ends[below] <= starts[run] + pitch) below++
    for (let other = below; other < starts.length && starts[other] < ends[run] + pitch; other++) {
      const a = root(run), b = root(other)
      part[Math.max(a, b)] = Math.min(a, b)
    }
  }
  return part.map((_, i) => root(i))
}

const SMALLEST_PART = .05

// The smallest box around the two largest parts of a mask, and their area with holes filled
function lungsSpan(runs, width, height, parts = 2) {
  if (!runs.starts.length) return {span: null, area: 0}
  const pitch = width + 1, part = partsOfRuns(runs, pitch), areas = new Map()
  part.forEach((p, i) => areas.set(p, (areas.get(p) ?? 0) + runs.ends[i] - runs.starts[i]))
  const ranked = [...areas].sort((a, b) => b[1] - a[1] || a[0] - b[0]), largest = new Set(ranked.slice(0, parts).filter(([, area]) => area >= SMALLEST_PART*ranked[0][1]).map(([p]) => p))
  const kept = part.map((p, i) => i).filter(i => largest.has(part[i])), starts = kept.map(i => runs.starts[i]), ends = kept.map(i => runs.ends[i])
  const rows = starts.map(s => Math.floor(s/pitch)), least = (list, f) => list.reduce((m, v) => Math.min(m, f(v)), Infinity), most = (list, f) => list.reduce((m, v) => Math.max(m, f(v)), -Infinity)
  const span = [least(starts, s => s % pitch), least(rows, r => r), most(ends, e => e % pitch), most(rows, r => r) + 1]
  return {span, area: starts.reduce((sum, s, i) => sum + ends[i] - s, 0) + holeArea(starts, ends, width, height)}
}

// Pixels that the kept parts surround
function holeArea(starts, ends, width, height) {
  const pitch = width + 1, outside = {starts: [], ends: []}
  for (let y = 0, i = 0; y < height; y++) {
    let at = y*pitch
    for (; i < starts.length && starts[i] < (y + 1)*pitch; i++) {
      if (starts[i] > at) { outside.starts.push(at); outside.ends.push(starts[i]) }
      at = ends[i]
    }
    if (at < y*pitch + width) { outside.starts.push(at); outside.ends.push(y*pitch + width) }
  }
  const part = partsOfRuns(outside, pitch), open = new Set()
  outside.starts.forEach((s, i) => {
    const row = Math.floor(s/pitch)
    if (row === 0 || row === height - 1 || s % pitch === 0 || outside.ends[i] % pitch === width) open.add(part[i])
  })
  return outside.starts.reduce((sum, s, i) => sum + (open.has(part[i]) ? 0 : outside.ends[i] - s), 0)
}

// The square around a box with a margin, inside the picture (`data.views.square_around`)
function squareAround(span, size, margin) {
  const limits = [0, 1].map(i => [span[i], span[i + 2], size[i]]), side = Math.max(...limits.map(([low, high]) => high - low))*(1 + 2*margin)
  const edges = limits.map(([low, high, length]) => { const start = Math.min(Math.max((low + high - side)/2, 0), Math.max(length - side, 0)); return [rounded(start), rounded(Math.min(start + side, length))] })
  return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]
}

// The square around the lungs of an image in its pixels; null if the mask cannot be used
function findLungs(probability, quality, {width, height}, lungs) {
  const {span, area} = lungsSpan(enlargedRuns(probability, lungs.image_size, width, height), width, height), share = area/(width*height)
  if (!span || !(quality >= lungs.least_quality && lungs.least_area <= share && share <= lungs.most_area)) return null
  return squareAround(span, [width, height], lungs.margin)
}

// What the network is shown of an image: a Uint8Array for each view
const viewsOf = (spec, image, box) => spec.views.map(view => greySquare(view === 'lungs' && box ? cropped(image, box) : image, spec.image_size).data)

// ---- from a logit to a probability ----

const LOG_ODDS_LIMIT = Math.log(1e12 - 1)

function logOdds(probability) {
  const p = Math.min(Math.max(probability, 1e-12), 1 - 1e-12)
  return Math.log(p) - Math.log1p(-p)
}

function calibratedLogOdds(logit, curve) {
  const held = Math.min(Math.max(logit, -LOG_ODDS_LIMIT), LOG_ODDS_LIMIT)
  return curve ? curve.intercept + curve.slope*held : held
}

const sigmoid = x => x >= 0 ? 1/(1 + Math.exp(-x)) : Math.exp(x)/(1 + Math.exp(x))

function ruleText({rule = '', value = null}) { return value === null ? rule : `${rule} ${value}` }

// Everything that is said about one finding of one image; `prevalence`: finding -> share
function findingRow(spec, finding, logit, prevalence = {}) {
  const curve = spec.calibration.curves?.[finding], odds = calibratedLogOdds(logit, curve), share = spec.prevalence[finding] ?? null
  const cut = spec.thresholds.by_finding?.[finding] ?? null, score = spec.scores.findings?.[finding] ?? {}, here = prevalence[finding]
  const shift = here === undefined ? 0 : logOdds(here) - logOdds(share)
  return {finding, probability: sigmoid(odds + shift), prevalence: here ?? share, threshold: cut, rule: ruleText(spec.thresholds), flagged: cut === null ? null : sigmoid(odds) >= cut,
    calibrated: curve !== undefined, auroc: score.auroc ?? null, low: score.low ?? null, high: score.high ?? null, part: spec.scores.part ?? null, better_than_chance: Boolean(score.better_than_chance)}
}

// Findings whose prevalence can be changed: some validation image had them, and some had not
const hasPrevalence = (spec, finding) => spec.prevalence[finding] > 0 && spec.prevalence[finding] < 1

// ---- maps ----

const MAP_SIDE = 64

// How the pixels of a row of one square spread over those of another (`data.frames.covered_shares`): n×n
function coveredShares([inner, innerLength], [outer, outerLength], [low, high], n) {
  const seen = i => Math.min(Math.max(inner + innerLength*i/n, low), high), large = i => outer + outerLength*i/n, shares = new Float64Array(n*n)
  for (let row = 0; row < n; row++) for (let column = 0; column < n; column++)
    shares[row*n + column] = Math.max(Math.min(large(row + 1), seen(column + 1)) - Math.max(large(row), seen(column)), 0)/(innerLength/n)
  return shares
}

// a·b, or a·bᵀ, of n×n matrices
function product(a, b, n, turnedB) {
  const out = new Float64Array(n*n)
  for (let i = 0; i < n; i++) for (let k = 0; k < n; k++) {
    const value = a[i*n + k]
    if (value) for (let j = 0; j < n; j++) out[i*n + j] += value*(turnedB ? b[j*n + k] : b[k*n + j])
  }
  return out
}

// Lay a map of a view back into the frame of the whole image
function pasteMap(map, [left, upper, right, lower], width, height) {
  const own = Math.max(right - left, lower - upper), whole = Math.max(width, height), n = MAP_SIDE
  const inside = [left - ((own - right + left) >> 1), upper - ((own - lower + upper) >> 1)], outside = [-((whole - width) >> 1), -((whole - height) >> 1)]
  const across = coveredShares([inside[0], own], [outside[0], whole], [left, right], n), down = coveredShares([inside[1], own], [outside[1], whole], [upper, lower], n)
  return product(product(down, map, n, false), across, n, true)
}

// One map a finding, MAP_SIDE×MAP_SIDE on the padded square of the whole image; `maps`: Float32Array of views×findings×h×w
function joinedMaps(maps, [views, findings, h, w], boxes, width, height, share) {
  const wide = rounded(MAP_SIDE/share[1]), tall = rounded(MAP_SIDE/share[0])
  return Array.from({length: findings}, (_, finding) => {
    const sum = new Float32Array(MAP_SIDE*MAP_SIDE)
    for (let view = 0; view < views; view++) {
      const grid = maps.slice((view*findings + finding)*h*w, (view*findings + finding + 1)*h*w).map(v => Math.max(v, 0))
      const large = cropFloats(resized({width: w, height: h, data: grid}, wide, tall))
      const own = boxes[view] ? pasteMap(large, boxes[view], width, height) : large
      for (let i = 0; i < sum.length; i++) sum[i] += own[i]
    }
    return sum
  })
}

function cropFloats({width, data}) {
  if (width === MAP_SIDE) return data.subarray(0, MAP_SIDE*MAP_SIDE)
  const out = new Float32Array(MAP_SIDE*MAP_SIDE)
  for (let y = 0; y < MAP_SIDE; y++) out.set(data.subarray(y*width, y*width + MAP_SIDE), y*MAP_SIDE)
  return out
}

// ---- an answer ----

// What the pixels of a picture say before anybody asks what it shows (`using.cheap_checks.picture_facts`)
function pictureFacts({width, height, data, colour = 0}) {
  const counts = new Float64Array(256)
  for (let i = 0; i < data.length; i++) counts[data[i]]++
  for (let v = 0; v < 256; v++) counts[v] /= data.length
  let below = 0, low = 256, high = 256
  counts.forEach((share, v) => { below += share; if (below >= .01) low = Math.min(low, v); if (below >= .99) high = Math.min(high, v) })
  const shorter = Math.min(width, height), longer = Math.max(width, height)
  return {flat: 255 - (high - low), one_grey: Math.max(...counts), white: counts[255], ends: counts[0] + counts[255], long: longer/shorter, small: 64/shorter, colour}
}

// What its pixels say against a picture; of several reasons that it is blank, the first
function whyOdd(facts, checks) {
  const said = Object.entries(checks ?? {}).filter(([name, check]) => !(facts[name] <= check.limit)), flat = said.some(([name]) => name === 'flat')
  return said.filter(([name]) => !(flat && name === 'one_grey')).map(([, check]) => check.says)
}

// What the gate says against an image, in one sentence at most (`using.cheap_checks.why_strange`)
function whyStrange(numbers, scores = []) {
  const above = scores.map((score, i) => [numbers[i] - score.limit, score]).filter((_, i) => !(numbers[i] <= scores[i].limit))
  if (!above.length) return []
  const farther = scores.find((score, i) => numbers[i] > (score.far ?? Infinity)), things = above.filter(([, score]) => !('far' in score))
  return [(farther ?? (things.length ? things : above).reduce((most, pair) => pair[0] > most[0] ? pair : most)[1]).says]
}

if (typeof module !== 'undefined') module.exports = {enlargedRuns, lungsSpan, squareAround, findLungs, viewsOf, findingRow, hasPrevalence, joinedMaps, pictureFacts, whyOdd, whyStrange, sigmoid, calibratedLogOdds, logOdds, MAP_SIDE}
