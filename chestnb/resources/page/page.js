// What one sees: files in, answers out. The model works in worker.js; the arithmetic of probabilities is runner.js.
'use strict'

const $ = id => document.getElementById(id)
const build = {...JSON.parse($('build').textContent), base: new URL('.', location.href).href}
const MOST_KEPT = 100   // Images in the list; older ones are let go, so that memory does not grow

let spec, worker, ready = false, failed = false, chosen = null, numbers = 0
const items = []                 // {id, name, file, status, answer, shown}
const waiting = new Map()        // Items that the worker has not answered
const prevalence = {}            // Finding -> share that the reader gave
let finding = null               // The finding whose map and words are shown

// ---- small helpers ----

function element(kind, attributes = {}, ...inside) {
  const made = document.createElement(kind)
  for (const [name, value] of Object.entries(attributes)) name in made && name !== 'list' ? made[name] = value : made.setAttribute(name, value)
  made.append(...inside)
  return made
}

const percent = share => share >= .0995 ? `${Math.round(100*share)} %` : share >= .00995 ? `${(100*share).toFixed(1)} %` : share >= .0001 ? `${(100*share).toFixed(2)} %` : 'under 0.01 %'
// What was not calibrated is a score, and no probability: never per cent
const scoreText = value => value > .99 ? value.toFixed(4) : String(+value.toPrecision(2))
const valueText = (row, value) => row.calibrated ? percent(value) : scoreText(value)
const auroc = value => value.toFixed(2).replace(/^0/, '')
const spoken = name => name.replaceAll('_', ' ')

function say(text, fault = false) {
  $('status').textContent = text
  $('status').classList.toggle('fault', fault)
}

// ---- the worker ----

// Made from a blob, so that this page's Content-Security-Policy holds in it too: it can speak to this page's own server only
function startWorker() {
  const scripts = ['pixels.js', 'runner.js', 'dicom.js', 'worker.js'].map(name => `${build.base}${name}?${build.version}`)
  worker = new Worker(URL.createObjectURL(new Blob([`importScripts(${scripts.map(url => JSON.stringify(url)).join(', ')})`], {type: 'text/javascript'})))
  worker.onmessage = ({data}) => heard(data)
  worker.onerror = event => { say(`The page's program could not be loaded (${event.message || 'a file is missing, or this device is offline'}). Reload the page.`, true); event.preventDefault() }
  worker.postMessage({kind: 'start', build})
}

function heard({kind, ...data}) {
  if (failed) return   // files that are still arriving have no news
  if (kind === 'progress') progressed(data)
  else if (kind === 'starting') say('Starting the model…')
  else if (kind === 'fault') { failed = true; $('progress').hidden = true; say(data.text, true); if (chosen) show(chosen) }
  else if (kind === 'ready') becameReady(data)
  else if (kind === 'answer') answered(data)
}

function progressed({loaded, total}) {
  $('progress').hidden = false
  $('progress').value = loaded/total
  say(`Loading the model: ${(loaded/1e6).toFixed(1)} of ${(total/1e6).toFixed(1)} MB. You can choose images already.`)
}

function becameReady(data) {
  spec = data.spec
  ready = true
  $('progress').hidden = true
  document.documentElement.dataset.ready = Math.round(performance.now())
  say(`Ready.${data.checked ? '' : ' (The files were not checked: without https this browser computes no SHA-256.)'} No image will leave this device.`)
  if ('serviceWorker' in navigator) navigator.serviceWorker.register('offline.js').catch(() => {})   // without it the page works, but not offline
  for (const item of waiting.values()) send(item)
}

const send = item => worker.postMessage({kind: 'image', id: item.id, file: item.file})

// ---- files ----

function take(files) {
  if (!files.length) return
  let first
  for (const file of files) {
    const item = {id: ++numbers, name: file.name, file, status: 'waiting'}
    first ??= item
    items.push(item)
    waiting.set(item.id, item)
    $('images').append(item.row = listRow(item))
    if (ready) send(item)
  }
  while (items.length > MOST_KEPT && items[0].status !== 'waiting') forget(items.shift())
  $('list').hidden = false
  choose(first)
}

function forget(item) {
  if (item.shown) URL.revokeObjectURL(item.shown)
  waiting.delete(item.id)
  item.row.remove()
}

function answered({id, answer}) {
  const item = waiting.get(id)
  if (!item) return   // the list was cleared meanwhile
  waiting.delete(id)
  Object.assign(item, {answer, status: answer.status, file: null, shown: answer.shown && URL.createObjectURL(answer.shown)})
  delete answer.shown
  updateRow(item)
  if (chosen === item) show(item)
  const left = waiting.size
  say(left ? `${left} of ${items.length} images left.` : `${items.length === 1 ? 'The image is' : `All ${items.length} images are`} done.`)
  document.documentElement.dataset.done = numbers - left
}

function listRow(item) {
  const row = element('li', {}, element('button', {type: 'button', onclick: () => { choose(item); $('result-title').focus({preventScroll: true}); $('result').scrollIntoView({block: 'nearest'}) }}, element('span', {className: 'name'}, item.name), element('span', {className: 'said'}, 'waiting')))
  return row
}

function updateRow(item) {
  const flagged = item.status === 'answered' ? rowsOf(item).filter(row => row.flagged).length : 0
  const said = {answered: flagged ? `${flagged} of ${spec.findings.length} findings flagged` : 'no finding flagged', refused: 'refused', failed: 'not read', waiting: 'waiting'}[item.status]
  item.row.querySelector('.said').textContent = said
  item.row.firstChild.classList.add(item.status)
}

function choose(item) {
  chosen = item
  for (const other of items) other.row.firstChild.setAttribute('aria-current', other === item)
  show(item)
}

function clearList() {
  items.splice(0).forEach(forget)
  chosen = null
  for (const id of ['list', 'result']) $(id).hidden = true
  $('files').value = ''
  $('files').focus()
}

// ---- an answer ----

const rowsOf = item => spec.findings.map((name, i) => ({...findingRow(spec, name, item.answer.logits[i], prevalence), index: i, above: above(name, item.answer.logits[i])}))

// Log-odds above the threshold: the order in which findings deserve a look
function above(name, logit) {
  const cut = spec.thresholds.by_finding?.[name] ?? null
  return cut === null ? -Infinity : calibratedLogOdds(logit, spec.calibration.curves?.[name]) - logOdds(cut)
}

function show(item) {
  $('result').hidden = false
  $('result').dataset.status = item.status
  $('result-title').textContent = item.name
  const {answer} = item
  $('picture').hidden = !item.shown
  if (item.shown) showPicture(item)
  const words = $('words')
  words.replaceChildren()
  if (!answer) return words.append(element('p', {}, failed ? 'The model could not be started, so there is no answer.' : ready ? 'Waiting for its turn…' : 'Waiting for the model…'))
  if (answer.status === 'failed') words.append(element('p', {className: 'verdict'}, 'This file gives no answer.'), reasonList(answer.reasons))
  else if (answer.status === 'refused') words.append(element('p', {className: 'verdict'}, 'Refused: the model was not made for this image.'), reasonList(answer.reasons), element('p', {}, 'No probabilities are given, because they would mean nothing.'))
  else words.append(...findingsPart(item))
  for (const note of answer.notes) words.append(element('p', {className: 'note'}, note))
  words.append(element('p', {className: 'small'}, `Computed on this device in ${Math.max(answer.milliseconds/1000, .01).toFixed(2)} s. Not for clinical use.`))
  if (item.shown) words.append(viewsPart(answer))
  more()
  paint(finding)
}

const reasonList = reasons => element('ul', {className: 'reasons'}, ...reasons.map(reason => element('li', {}, reason)))

function showPicture(item) {
  const [width, height] = item.answer.size
  $('shown').src = item.shown
  $('shown').alt = `The X-ray ${item.name}, ${width}×${height} pixels`
  const side = Math.max(width, height), stage = $('picture').querySelector('.stage')
  stage.style.aspectRatio = `${width}/${height}`
  stage.style.setProperty('--ratio', width/height)
  Object.assign($('map').style, {width: `${100*side/width}%`, height: `${100*side/height}%`, left: `${50 - 50*side/width}%`, top: `${50 - 50*side/height}%`})
}

function viewsPart({views, box}) {
  const name = view => view === 'whole' ? 'the whole image' : box ? 'the lungs' : 'no lungs found: the whole image'
  return element('div', {id: 'views'}, element('p', {className: 'small'}, 'What the network was shown:'), ...views.map((view, i) => element('figure', {}, squareCanvas(view), element('figcaption', {}, name(spec.views[i])))))
}

function squareCanvas(grey) {
  const side = spec.image_size, canvas = element('canvas', {width: side, height: side, ariaHidden: 'true'})
  canvas.getContext('2d').putImageData(canvasPixels(picture(side, side, grey)), 0, 0)
  return canvas
}

function findingsPart(item) {
  const rows = rowsOf(item).sort((a, b) => b.above - a.above || b.probability - a.probability), flagged = rows.filter(row => row.flagged).length
  const list = element('ul', {id: 'findings'}, ...rows.map(row => findingItem(row)))
  return [element('p', {className: 'verdict'}, flagged ? `${flagged} of ${rows.length} findings ${flagged === 1 ? 'is' : 'are'} flagged.` : 'No finding is flagged. That does not mean that nothing is there.'),
    element('p', {className: 'small'}, 'Point at a finding, or move to it with the Tab key, to see what raised its number. Choose it for more.'), list]
}

function findingItem(row) {
  const said = row.flagged === null ? 'no threshold' : row.flagged ? 'flagged' : 'not flagged', cut = row.threshold === null ? null : thresholdHere(row)
  const bar = element('span', {className: 'bar', ariaHidden: 'true'}, element('span', {className: 'fill'}), ...(cut === null ? [] : [element('span', {className: 'cut'})]))
  bar.firstChild.style.width = `${100*row.probability}%`
  if (cut !== null) bar.lastChild.style.left = `${100*cut}%`
  const button = element('button', {type: 'button', className: row.flagged ? 'flagged' : '', ariaExpanded: String(finding === row.finding)},
    element('span', {}, element('span', {className: 'name'}, spoken(row.finding)), ' ', element('span', {className: 'said'}, said, doubt(row) ? `; ${doubt(row)}` : '')), element('span', {className: 'number'}, `${row.calibrated ? '' : 'score '}${valueText(row, row.probability)}`), bar)
  button.dataset.finding = row.finding
  button.onpointerenter = button.onfocus = () => paint(row.finding)
  button.onpointerleave = button.onblur = () => paint(finding)
  button.onclick = () => { finding = finding === row.finding ? null : row.finding; more(); paint(finding ?? row.finding) }
  return element('li', {}, button)
}

const doubt = row => row.auroc === null ? build.words.never_tested : row.better_than_chance ? '' : build.words.never_shown

// The threshold on the scale of the probability beside it
const thresholdHere = row => row.finding in prevalence ? sigmoid(logOdds(row.threshold) + logOdds(prevalence[row.finding]) - logOdds(spec.prevalence[row.finding])) : row.threshold

// Everything about the chosen finding, under it: what is known of it, and how common it is
function more() {
  $('more')?.remove()
  for (const button of document.querySelectorAll('#findings button')) button.ariaExpanded = String(button.dataset.finding === finding)
  const button = document.querySelector('#findings [aria-expanded=true]')
  if (!button) return
  const row = rowsOf(chosen).find(row => row.finding === finding), known = spec.prevalence[finding]
  const facts = [row.threshold === null ? 'It has no threshold: too few patients had it.' : `Its threshold is ${valueText(row, thresholdHere(row))}, chosen for ${build.words.rule || row.rule}.`,
    row.auroc === null ? `AUROC: ${build.words.never_tested}.` : `On ${build.words.part} patients its AUROC was ${auroc(row.auroc)}${row.low === null ? '' : ` (${auroc(row.low)} to ${auroc(row.high)})`}${row.better_than_chance ? '' : `: ${build.words.never_shown}`}.`,
    row.calibrated ? '' : 'Its number is a score and no probability: it could not be adjusted on validation patients.']
  button.after(element('div', {id: 'more'}, element('p', {}, facts.filter(Boolean).join(' ')), ...(hasPrevalence(spec, finding) ? [prevalenceControl(known)] : [])))
}

function prevalenceControl(known) {
  const input = element('input', {type: 'number', id: 'prevalence', min: '0.01', max: '99.99', step: 'any', value: +(100*(prevalence[finding] ?? known)).toPrecision(3)})
  const reset = element('button', {type: 'button', onclick: () => setPrevalence(null)}, 'As in the validation patients')
  input.onchange = () => setPrevalence(input.value/100)
  return element('p', {className: 'prevalence'}, element('label', {htmlFor: 'prevalence'}, `How many of 100 X-rays have it where this one comes from? This probability assumes ${+(100*(prevalence[finding] ?? known)).toPrecision(3)}${finding in prevalence ? '' : ', as among the validation patients'}. `), input, ' ', reset)
}

function setPrevalence(share) {
  if (share !== null && !(share > 0 && share < 1)) return say('A prevalence lies above 0 and below 100.', true)
  if (share === null) delete prevalence[finding]
  else prevalence[finding] = share
  show(chosen)
  $('prevalence')?.focus()
}

// ---- the map ----

// What speaks for a finding, in orange over the image: the stronger, the less transparent; null: no map
function paint(name) {
  const canvas = $('map'), context = canvas.getContext('2d'), answer = chosen?.answer, pixels = new ImageData(MAP_SIDE, MAP_SIDE)
  const map = name && chosen?.status === 'answered' ? answer.maps[spec.findings.indexOf(name)] : null, most = map ? map.reduce((m, v) => Math.max(m, v), 0) : 0
  if (most > 0) map.forEach((value, i) => pixels.data.set([255, 120, 0, 190*(value/most)], 4*i))
  context.putImageData(pixels, 0, 0)
  if (!chosen?.answer?.size) return
  const [width, height] = answer.size
  $('caption').textContent = most > 0 ? `Orange: what raised the number of ${spoken(name)}.` : name && map ? `Nothing in this image raised the number of ${spoken(name)}.` : `${width.toLocaleString('en')}×${height.toLocaleString('en')} pixels.`
}

// ---- start ----

function connect() {
  $('files').addEventListener('change', () => { take([...$('files').files]); $('files').value = '' })
  $('clear').addEventListener('click', clearList)
  for (const kind of ['dragover', 'dragenter']) addEventListener(kind, event => { event.preventDefault(); $('drop').classList.add('over') })
  for (const kind of ['dragleave', 'drop']) addEventListener(kind, event => { if (kind === 'drop' || !event.relatedTarget) $('drop').classList.remove('over') })
  addEventListener('drop', event => { event.preventDefault(); take([...event.dataTransfer.files]) })
  addEventListener('paste', event => take([...event.clipboardData.files]))
  for (const button of document.querySelectorAll('#samples button')) button.addEventListener('click', () => takeSample(button.dataset))
}

async function takeSample({url, name}) {
  try {
    const response = await fetch(url)
    if (!response.ok) throw new Error()
    take([new File([await response.blob()], name)])
  } catch (error) { say(`The example ${name} cannot be fetched: the server or the connection is gone.`, true) }
}

function lacking() {
  if (location.protocol === 'file:') return 'This page was opened as a file, and browsers then keep it from its own model. Start a server in its folder (python -m http.server) and open http://localhost:8000.'
  const needed = {WebAssembly: 'WebAssembly', Worker: 'Web Workers', OffscreenCanvas: 'OffscreenCanvas', DecompressionStream: 'DecompressionStream'}
  const missing = Object.keys(needed).filter(name => !(name in window))
  return missing.length ? `This browser has no ${missing.map(name => needed[name]).join(', ')}, or it is switched off, so it cannot run the model. Use a current Firefox, Chrome, Edge or Safari.` : ''
}

connect()
if (lacking()) say(lacking(), true)
else { say('Loading the model…'); startWorker() }
