// The model in a thread of its own, so that the page stays responsive: fetches and checks the files, reads images, answers. No image leaves this thread but to the page.
'use strict'

let build, spec, model, segmenter, dicomReader

// ---- files ----

async function sha256(bytes) {
  if (!crypto.subtle) return null   // pages without https, other than localhost: the browser gives no hash
  return Array.from(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes)), b => b.toString(16).padStart(2, '0')).join('')
}

async function received(response, onBytes) {
  const parts = [], reader = response.body.getReader()
  for (let {done, value} = await reader.read(); !done; {done, value} = await reader.read()) { parts.push(value); onBytes(value.length) }
  return new Uint8Array(await new Blob(parts).arrayBuffer())
}

// A file of the page: from this browser's cache, else from the server, checked and kept
async function fetched(file, onBytes) {
  const cache = self.caches ? await caches.open(build.cache).catch(() => null) : null, url = new URL(file.url, build.base).href
  let response = await cache?.match(url), kept = Boolean(response)
  try { response ??= await fetch(url, {cache: 'no-cache'}) }
  catch (error) { throw new Fault(`${file.name} cannot be fetched: ${navigator.onLine ? 'the server does not answer' : 'this device is offline, and the page has not been loaded whole before'}. Reload when there is a connection.`) }
  if (!response.ok) throw new Fault(`${file.name} is missing on the server (it answers ${response.status}). Whoever put up this page should build it again with chestnb_page.`)
  let bytes
  try { bytes = await received(response, onBytes) }
  catch (error) { throw new Fault(`${file.name} broke off on its way. Reload the page.`) }
  const found = await sha256(bytes)
  if (found !== null && found !== file.sha256) {
    await cache?.delete(url)
    throw new Fault(`${file.name} is not the file that this page was built with: its SHA-256 is ${found.slice(0, 12)}…, expected ${file.sha256.slice(0, 12)}…. Nothing is computed with it. Reload the page; if that does not help, whoever put it up should build it again.`)
  }
  if (cache && !kept) await cache.put(url, new Response(bytes)).catch(() => {})   // a full disk is no reason to stop
  return bytes
}

async function unpacked(bytes) { return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer()) }

const scriptUrl = bytes => URL.createObjectURL(new Blob([bytes], {type: 'text/javascript'}))

// ---- start ----

async function start() {
  if (typeof WebAssembly === 'undefined') throw new Fault('This browser has no WebAssembly, or it is switched off, so it cannot run the model. Use a current Firefox, Chrome, Edge or Safari.')
  const files = build.files, total = Object.values(files).reduce((sum, file) => sum + (file.later ? 0 : file.bytes), 0)
  let loaded = 0
  const onBytes = n => postMessage({kind: 'progress', loaded: loaded += n, total})
  const names = Object.keys(files).filter(name => !files[name].later), bytes = Object.fromEntries(await Promise.all(names.map(async name => [name, await fetched(files[name], onBytes)])))
  spec = JSON.parse(new TextDecoder().decode(bytes['model.json']))
  if (spec.format !== 'chestnb-model-1') throw new Fault(`model.json has the format ${spec.format}, and this page reads chestnb-model-1. Whoever put it up should build it again.`)
  postMessage({kind: 'starting'})
  const wasm = files['ort.wasm'].gzip ? await unpacked(bytes['ort.wasm']) : bytes['ort.wasm']
  try {
    importScripts(scriptUrl(bytes['ort.js']))
    Object.assign(ort.env.wasm, {wasmBinary: wasm.buffer, wasmPaths: {mjs: scriptUrl(bytes['ort.mjs'])}, numThreads: self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1})
    ort.env.logLevel = 'error'
    const session = name => ort.InferenceSession.create(bytes[name], {executionProviders: ['wasm'], graphOptimizationLevel: 'all'})
    if (spec.lungs) segmenter = await session('lungs.onnx')
    model = await session('model.onnx')
    ort.env.wasm.wasmBinary = undefined
  } catch (error) { throw new Fault(`The model cannot be started in this browser (${String(error.message ?? error).slice(0, 200)}). Use a current Firefox, Chrome, Edge or Safari.`) }
  await forward(new Float32Array(spec.views.length*spec.image_size**2))   // the first pass is slower: not on a reader's image
}

async function run(session, name, shape, data) {
  const input = new ort.Tensor('float32', data, shape), outputs = await session.run({[name]: input}), found = {}
  for (const [key, tensor] of Object.entries(outputs)) {
    found[key] = {data: Float32Array.from(tensor.data), dims: tensor.dims}
    tensor.dispose()
  }
  input.dispose()
  return found
}

const forward = views => run(model, 'views', [1, spec.views.length, spec.image_size, spec.image_size], views)

// Squares of bytes -> grey in 0..1, one after the other
function scaled(squares, size) {
  const out = new Float32Array(squares.length*size*size)
  squares.forEach((square, n) => { for (let i = 0; i < square.length; i++) out[n*size*size + i] = square[i]/255 })
  return out
}

// ---- images ----

const ARCHIVE = 'Unpack it, and give the images inside.', OTHER = 'Export the X-ray itself, as PNG or DICOM.'
const KINDS = [['zip archive', 'PK\x03\x04', ARCHIVE], ['gzip archive', '\x1f\x8b', ARCHIVE], ['7-Zip archive', "7z\xbc\xaf'\x1c", ARCHIVE], ['RAR archive', 'Rar!', ARCHIVE], ['PDF', '%PDF', OTHER], ['web page', '<!DOCTYPE html', OTHER], ['web page', '<html', OTHER]]

// A file -> {picture, notes} or {refused: reason}; a `Fault` if it cannot be read
async function opened(file) {
  if (!file.size) throw new Fault('Is empty (0 bytes). Copy or export it again.')
  if (file.size > build.most_bytes) throw new Fault(`Has ${Math.round(file.size/1e6).toLocaleString('en')} MB; an X-ray of at most ${build.most_bytes/1e6} MB is expected.`)
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 132).arrayBuffer())), kind = KINDS.find(([, mark]) => head.toLowerCase().startsWith(mark.toLowerCase()))
  if (kind) throw new Fault(`Is a ${kind[0]}, whatever its name says. ${kind[2]}`)
  if (/^(II\*\0|MM\0\*)/.test(head)) throw new Fault('Is a TIFF picture, which browsers do not read. Save it as PNG, or use chestnb_predict, which reads it.')
  if (head.endsWith('DICM') || /\.(dcm|dicom)$/i.test(file.name)) return dicomPicture(file)
  return {picture: head.startsWith(String.fromCharCode(...PNG)) ? await decodePng(new Uint8Array(await file.arrayBuffer()), build.most_pixels) : await decodeByBrowser(file, build.most_pixels)}
}

async function dicomPicture(file) {
  if (!dicomReader) {
    importScripts(scriptUrl(await fetched(build.files['dicom-parser.js'], () => {})))
    dicomReader = true
  }
  return readDicom(new Uint8Array(await file.arrayBuffer()), build.words.dicom, build.most_pixels)
}

const SHOWN = 1024   // Longer side of the picture that the page shows, pixels, at most

// A picture as a small file, which costs less memory than pixels
async function shownPicture(image) {
  const blocks = Math.ceil(Math.max(image.width, image.height)/SHOWN), small = blocks > 1 ? reduced(image, blocks, blocks) : image, canvas = new OffscreenCanvas(small.width, small.height)
  canvas.getContext('2d').putImageData(canvasPixels(small), 0, 0)
  return canvas.convertToBlob({type: 'image/jpeg', quality: .9})
}

// ---- an answer ----

async function answer(file) {
  const {picture: image, refused, notes = []} = await opened(file)
  if (refused) return {status: 'refused', reasons: [`${refused[0].toUpperCase()}${refused.slice(1)}.`], notes: []}
  const shown = shownPicture(image), size = [image.width, image.height]
  let box = null
  if (spec.lungs) {
    const small = spec.lungs.image_size, {mask, quality} = await run(segmenter, 'image', [1, 1, small, small], scaled([greySquare(image, small).data], small))
    box = findLungs(mask.data, quality.data[0], image, spec.lungs)
    if (!box) notes.push(build.words.no_mask)
  }
  const views = viewsOf(spec, image, box), {logits, maps, refusal} = await forward(scaled(views, spec.image_size))
  const reasons = [...whyOdd(pictureFacts(image), spec.refusal.checks), ...whyStrange(refusal.data, spec.refusal.scores)]
  return {status: reasons.length ? 'refused' : 'answered', reasons, notes, size, box, logits: logits.data, refusal: refusal.data, views, shown: await shown,
    maps: joinedMaps(maps.data, maps.dims.slice(1), spec.views.map(view => view === 'lungs' ? box : null), image.width, image.height, spec.map_share)}
}

const failure = error => error instanceof Fault ? error.message : error instanceof RangeError ? 'There is not enough memory to open it. Close other programs, or export it smaller.' : `${error.message ?? error}`

async function onMessage({kind, id, file, ...given}) {
  const began = performance.now()
  if (kind === 'start') {
    build = given.build
    try { await start(); postMessage({kind: 'ready', spec, threads: ort.env.wasm.numThreads, checked: Boolean(crypto.subtle)}) }
    catch (error) { postMessage({kind: 'fault', text: failure(error)}) }
    return
  }
  let found
  try { found = await answer(file) }
  catch (error) { found = {status: 'failed', reasons: [failure(error)], notes: []} }
  postMessage({kind: 'answer', id, answer: {...found, milliseconds: performance.now() - began}}, [...found.views ?? [], ...found.maps ?? []].map(part => part.buffer))
}

let busy = Promise.resolve()   // one after the other, whatever comes
self.onmessage = ({data}) => { busy = busy.then(() => onMessage(data)) }
